"""Series, bytes a span, bytes a row, and GB a day: ``python -m integration.bench.sizing``.

Series are counted on a real page of metrics. Spans are encoded as the exporter sends them (OTLP protobuf, before gzip),
with and without a series, and the HTTP server span beside them. Rows are those of a real store with its log merged.
The attributes are those of a sequence of vLLM with all facts that the engine core gives.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import dataclasses
import gzip
import multiprocessing
import os
import sqlite3
import tempfile
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import fastapi
import numpy as np
from integration.bench.machine import processor, versions
from integration.bench.store import make_report
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from corevital.frames.lifecycle import CoreFacts
from corevital_otel.counters import Counters
from corevital_otel.metrics.exposition import Exposition
from corevital_otel.metrics.recorder import Recorder
from corevital_otel.otlp.encoding import group_of
from corevital_otel.report import Features, Health, RequestReport, Risk, Series
from corevital_otel.spans.emitter import SpanEmitter, span_limits
from corevital_otel.spans.encoded import encode_record
from corevital_otel.spans.http_server import HttpInstrumentation
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

DAY_S = 86_400
SCRAPES = DAY_S // 15
"""Of one server a day, at Prometheus' 15 seconds in the stack."""

FEATURES = tuple(field.name for field in dataclasses.fields(Features))

SAMPLE_BYTES = (1, 2)
"""Of one sample on disk, by Prometheus' documentation: https://prometheus.io/docs/prometheus/latest/storage/"""


def report(
    number: int, tokens: int, model: str = "meta-llama/Llama-3.3-70B-Instruct", *, series: bool = False
) -> RequestReport:
    """The report of a sequence of so many tokens, with a series or without."""
    made = make_report(number)
    random = np.random.default_rng(number)
    values = random.gamma(0.5, 1.0, (4, tokens)).astype(np.float32)
    features: dict[str, Any] = {
        name: random.gamma(0.5, 1.0) for name in FEATURES if isinstance(getattr(made.features, name), float)
    }
    named = dict(zip(("entropy", "surprisal", "margin", "topk_mass"), values, strict=True))
    admitted = dataclasses.replace(
        made.admitted, model=model, engine="vllm", engine_version="0.32.0", runner="v1", stage="raw"
    )
    core = CoreFacts(queue_s=0.01, prefill_s=0.2, decode_s=2.5, preemptions=0)
    return dataclasses.replace(
        made,
        admitted=admitted,
        outcome=dataclasses.replace(made.outcome, token_ids=range(tokens), core=core),
        features=dataclasses.replace(made.features, **features, tokens=tokens),
        series=Series(**named) if series else None,
    )


def series_of(text: str) -> int:
    """Time series of corevital's on a page."""
    ours = ("corevital_", "gen_ai_")
    return sum(len(family.samples) for family in text_string_to_metric_families(text) if family.name.startswith(ours))


def page(models: int) -> tuple[int, int, int]:
    """Series of a server with so many models, at its start and after all kinds of traffic; the page's bytes then."""
    names = [f"model-{number}" for number in range(models)]
    recorder = Recorder([Exposition()], Counters(), names)
    recorder.refresh(dict.fromkeys(names, 0), dict.fromkeys(names, 0), {"report": 0}, dict.fromkeys(names, 0))
    before = series_of(generate_latest(REGISTRY).decode())
    for name in names:
        for reason in ("stop", "length", "abort", "error"):
            for level in ("low", "medium", "high", "unknown"):
                made = report(1, 20, name)
                made = dataclasses.replace(
                    made,
                    outcome=dataclasses.replace(made.outcome, reason=reason),
                    risk=Risk(score=None if level == "unknown" else 0.5, level=level),
                    health=Health(truncated=True, sustained_high_entropy=True),
                )
                recorder.report(made, record_of(made, SpanIds("1" * 32, "1" * 16)))
    recorder.refresh(dict.fromkeys(names, 1), dict.fromkeys(names, 0), {"report": 0}, dict.fromkeys(names, 0))
    text = generate_latest(REGISTRY)
    return before, series_of(text.decode()), len(text)


def pages(*models: int) -> list[tuple[int, int, int]]:
    """:func:`page` for each number of models, each in a new process: the registry cannot be emptied."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        return list(pool.map(page, models))


def span_bytes(tokens: int, *, series: bool) -> int:
    """A sequence's span as it is sent."""
    emitter = SpanEmitter(Counters())
    record = record_of(report(1, tokens, series=series), SpanIds("1" * 32, "1" * 16, "2" * 16))
    return encode_record(record, group_of(emitter.resource), span_limits(), (), with_series=series).size


def compressed(tokens: int, *, series: bool, count: int = 100) -> float:
    """The same in a batch of so many, compressed as OTEL_EXPORTER_OTLP_COMPRESSION=gzip does."""
    emitter = SpanEmitter(Counters())
    group, limits = group_of(emitter.resource), span_limits()
    spans = []
    for number in range(1, count + 1):
        made = report(number, tokens, series=series)
        record = record_of(made, SpanIds(f"{number:032x}", f"{number:016x}", "2" * 16))
        spans.append(encode_record(record, group, limits, (), with_series=series))
    return len(gzip.compress(b"".join(span.data for span in spans))) / count


class _Last(SpanProcessor):
    """Keeps the last span that ended."""

    span: ReadableSpan

    def on_end(self, span: ReadableSpan) -> None:
        self.span = span


def server_span_bytes() -> int:
    """The HTTP server span of a request."""
    last = _Last()
    application = fastapi.FastAPI()

    @application.post("/v1/chat/completions")
    async def answer() -> dict[str, Any]:
        return {}

    HttpInstrumentation(SpanEmitter(Counters()).provider(ALWAYS_ON, last)).instrument(application)
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions",
        "root_path": "", "query_string": b"", "client": ("10.0.0.7", 5), "scheme": "http", "http_version": "1.1",
        "headers": [(b"x-request-id", b"0123456789abcdef")], "server": ("10.0.0.1", 8000),
    }  # fmt: skip

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        pass

    asyncio.run(application(scope, receive, send))
    return encode_spans([last.span]).resource_spans[0].scope_spans[0].spans[0].ByteSize()


def row_bytes(tokens: int, rows: int, *, series: bool) -> float:
    """A row of a real store, its share of indexes included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "corevital.db")
        writer = StoreWriter(path, 36500, 1 << 20, Counters())
        for number in range(rows):
            writer.put(record_of(report(number, tokens, series=series), SpanIds(f"{number:032x}", f"{number:016x}")))
        writer.close(120)
        with sqlite3.connect(path) as connection:
            (written,) = connection.execute("SELECT count(*) FROM reports").fetchone()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        if written != rows:
            raise RuntimeError(f"{written} of {rows} rows written")
        return path.stat().st_size / rows


def gigabytes(bytes_each: float, rate: float) -> float:
    """GB (10**9 bytes) a day of so many bytes, so many times a second."""
    return bytes_each * rate * DAY_S / 1e9


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for line in lines:
        print("| " + " | ".join(map(str, line)) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=300, help="of an answer, in the table of GB a day")
    parser.add_argument("--risky", type=float, default=0.05, help="share of requests whose series is kept (`on_risk`)")
    parser.add_argument("--keep", type=float, default=0.1, help="KEEP_PERCENT / 100")
    parser.add_argument("--rows", type=int, default=2000)
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("OTEL_", "COREVITAL_"))]:
        del os.environ[name]

    (start, one, size), (start_of_ten, ten, size_of_ten) = pages(1, 10)
    per_model = (ten - one) / 9
    table(
        ("models of a server", "series at its start", "series after traffic of every kind", "page in kB"),
        [(1, start, one, f"{size / 1e3:.0f}"), (10, start_of_ten, ten, f"{size_of_ten / 1e3:.0f}")],
    )
    print(f"{per_model:.0f} series more with each model\n")

    lengths = sorted({50, given.tokens, 1000, 4096})
    spans = {(tokens, series): span_bytes(tokens, series=series) for tokens in lengths for series in (False, True)}
    rows = {
        (tokens, series): row_bytes(
            tokens, given.rows if not series or tokens < 1000 else min(200, given.rows), series=series
        )
        for tokens in lengths
        for series in (False, True)
    }
    table(
        ("tokens", "span", "span with series", "row", "row with series"),
        [
            (
                tokens,
                spans[tokens, False],
                spans[tokens, True],
                f"{rows[tokens, False]:.0f}",
                f"{rows[tokens, True]:.0f}",
            )
            for tokens in lengths
        ],
    )
    server = server_span_bytes()
    small, large = (compressed(given.tokens, series=series) for series in (False, True))
    print(f"HTTP server span: {server} bytes. In batches of 100 with gzip: a span of {given.tokens} tokens")
    print(f"{small:.0f} bytes, with its series {large:.0f}\n")

    def mixed(values: dict[tuple[int, bool], Any], risky: float) -> float:
        return (1 - risky) * values[given.tokens, False] + risky * values[given.tokens, True]

    share = given.risky + (1 - given.risky) * given.keep
    sent = {
        mode: mixed(spans, risky) + server
        for mode, risky in (("summary", 0.0), ("on_risk", given.risky), ("full", 1.0))
    }
    kept = given.risky * spans[given.tokens, True] + (share - given.risky) * spans[given.tokens, False] + share * server
    rates = (1, 10, 100)
    table(
        ("GB a day", *(f"{rate}/s" for rate in rates)),
        [
            *((f"spans sent, `{mode}`", *(f"{gigabytes(each, rate):.2f}" for rate in rates))
              for mode, each in sent.items()),
            (f"spans kept in Tempo before compression, `on_risk`, KEEP_PERCENT={100 * given.keep:.0f}",
             *(f"{gigabytes(kept, rate):.2f}" for rate in rates)),
            *((f"store, `{mode}`", *(f"{gigabytes(mixed(rows, risky), rate):.2f}" for rate in rates))
              for mode, risky in (("summary", 0.0), ("on_risk", given.risky), ("full", 1.0))),
        ],
    )  # fmt: skip
    daily = mixed(rows, given.risky)
    hours = {rate: 24 * 1024 * 2**20 / 1e9 / gigabytes(daily, rate) for rate in rates}
    print(
        "COREVITAL_DB_MAX_MB=1024 keeps "
        + ", ".join(f"{each:.1f} hours at {rate}/s" for rate, each in hours.items())
        + "\n"
    )
    low, high = (one * SCRAPES * each / 1e6 for each in SAMPLE_BYTES)
    print(f"Prometheus: {one * SCRAPES / 1e6:.1f} million samples a server and day;")
    print(f"{low:.1f} to {high:.1f} MB at 1 to 2 bytes each\n")
    print(
        f"answers of {given.tokens} tokens, {given.risky:.0%} with a series under `on_risk`; {given.rows} rows a store"
    )
    packages = versions("corevital", "opentelemetry-sdk", "prometheus-client")
    print(f"{processor()}; {packages}, SQLite {sqlite3.sqlite_version}")


if __name__ == "__main__":
    main()
