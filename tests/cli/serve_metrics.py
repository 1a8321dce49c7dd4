"""A process with corevital's own ``/metrics`` and busy sequences: ``serve_metrics.py PORT MODELS RUNNING``."""

import sys
import threading
import time

from prometheus_client import start_http_server

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel.counters import Counters
from corevital_otel.metrics.exposition import Exposition
from corevital_otel.metrics.recorder import Recorder
from corevital_otel.report import Features, Health, RequestReport, Risk
from corevital_otel.spans.record import SpanIds, record_of

port, models, running = (int(argument) for argument in sys.argv[1:])
names = ["meta-llama/Llama-3.3-70B-Instruct-and-a-long-name", *(f"adapter-{number}" for number in range(1, models))]
recorder = Recorder([Exposition()], Counters(), names)
start_http_server(port, "127.0.0.1")
while True:
    recorder.refresh(dict.fromkeys(names, running), dict.fromkeys(names, 7), {"report": 2}, dict.fromkeys(names, 5))
    for name in names:
        now = time.time_ns()
        report = RequestReport(
            admitted=Admitted(
                request_id="r", engine_id="e", sequence=0, operation="chat", model=name, arrival_ns=now - 10**9,
                prompt_tokens=3,
            ),
            outcome=Finished(reason="length", token_ids=range(50), end_ns=now, first_chunk_s=0.05),
            features=Features(tokens=50, entropy_mean=0.43, surprisal_mean=0.4),
            health=Health(truncated=True, repetition_loop_detected=True, alarm_raised=True),
            risk=Risk(score=0.82, level="high"),
        )  # fmt: skip
        recorder.report(report, record_of(report, SpanIds("1" * 32, "1" * 16)))
    threading.Event().wait(0.05)
