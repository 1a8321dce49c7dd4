"""Adapters: one thin module for each interface of each engine, and what they share.

- :mod:`corevital.engines.emitter`: from one step's logits to a table on its way to the host. Shared.
- :mod:`corevital.engines.courier`: from such tables to frames, beside the engine's thread. Shared.
- :mod:`corevital.engines.occupants`: whose request is in which slot. Shared.
- :mod:`corevital.engines.vllm`: the class that vLLM loads, for whichever model runner it chose.
- :mod:`corevital.engines.vllm_v1`: the adapter for model runner V1.
- :mod:`corevital.engines.vllm_v2`: the adapter for Model Runner V2.
- :mod:`corevital.engines.vllm_frontend`: what vLLM's API server process knows of a request.
- :mod:`corevital.engines.vllm_names`: every private name of vLLM that we touch.
"""
