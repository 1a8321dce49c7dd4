"""text-generation-inference (TGI): its Python server, of which there is a process for each GPU, a *shard*.

The router, in Rust, sends a shard batches over gRPC. A shard knows neither clients nor their traces, only requests,
their batches, logits and tokens. See docs/operate/engines/tgi.md.
"""
