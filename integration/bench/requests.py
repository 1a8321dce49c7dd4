"""Finished requests a second through the whole telemetry half on one core: hub, store, metrics and OTLP.

    python -m integration.bench.requests [--rate 1000 2000 3000] [--seconds 20] [--tokens 16] [--sequences 1000000]

The process under test is corevital's part of an API server, bound to one core. The other cores run an engine's worker
that sends each sequence's records, a reader of the store that notes when each row appears, and an OTLP/gRPC collector
that counts spans by their ids. For each rate the table shows what arrived and what was lost, the time from a sequence's
end to its row, the share of the core that was used, and memory.

``--sequences`` does one long run at the first rate, in a store that prunes itself, and shows memory and files.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sqlite3
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from integration.bench.assembler import resident_mib
from integration.bench.machine import processor, versions
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tests.harness.processes import free_port

from corevital.frames.layout import ROW, SAMPLED, Source
from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.sender import FrameSender
from corevital.frames.stamp import parse
from corevital_otel import conventions as names
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings

TICK_S: Final = 0.05
LONGEST_WAIT_S: Final = 60.0
_spawn = multiprocessing.get_context("spawn")


def worker(orders: Connection, cores: set[int], tokens: int) -> None:
    """Sends the records of each batch of stamps it is given, some hundred rows a frame, as an engine's worker does."""
    os.sched_setaffinity(0, cores)
    sender, rng = FrameSender(Source("vllm", "v1", "raw")), np.random.default_rng(0)
    while (stamps := orders.recv()) is not None:
        parsed = [stamp for text in stamps if (stamp := parse(text)) is not None]
        rows = np.zeros((len(parsed), tokens), ROW)
        sampled = np.zeros((len(parsed), tokens), SAMPLED)
        rows["vocab"], rows["margin"], rows["topk_mass"] = 128_256, 0.5, 0.9
        rows["entropy"] = rng.random(rows.shape, np.float32)
        rows["topk_ids"], rows["topk_logprobs"] = np.arange(20), -3.0 - np.arange(20) / 4
        rows["key"] = sampled["key"] = np.array([stamp.key for stamp in parsed], np.uint64)[:, None]
        rows["index"] = sampled["index"] = np.arange(tokens)
        sampled["logprob"] = -1.0
        for at in range(0, len(parsed), step := max(512 // tokens, 1)):
            part = slice(at, at + step)
            sender.send(parsed[0].server, rows[part].reshape(-1), sampled[part].reshape(-1))
        orders.send(sum(sender.dropped.values()))
    sender.close()


@dataclass(frozen=True)
class Rows:
    """What the reader found: rows, those found twice, and seconds from a sequence's end to its row."""

    rows: int
    doubled: int
    latencies: list[float]


def reader(path: Path, orders: Connection, cores: set[int], expected: int) -> None:
    """Reads the store's new rows every few milliseconds until an order arrives."""
    os.sched_setaffinity(0, cores)
    seen, last, rows, doubled = np.zeros(expected, bool), 0, 0, 0
    latencies: deque[float] = deque(maxlen=1_000_000)
    while not orders.poll(0.01):
        if not path.exists():
            continue
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            query = "SELECT id, request_id, end_ns FROM reports WHERE id > ? ORDER BY id"
            found = connection.execute(query, (last,)).fetchall()
        except sqlite3.OperationalError:  # the tables are not there yet
            continue
        finally:
            connection.close()
        now = time.time_ns()
        for last, request_id, end_ns in found:  # noqa: B007 - the last one is where the next reading begins
            number = int(request_id)
            rows, doubled, seen[number] = rows + 1, doubled + int(seen[number]), True
            latencies.append((now - end_ns) / 1e9)
    orders.send(Rows(rows, doubled, list(latencies)))


def collector(port: int, orders: Connection, cores: set[int]) -> None:
    """An OTLP/gRPC server that counts spans, and those it got twice."""
    os.sched_setaffinity(0, cores)
    counts = {"spans": 0, "doubled": 0}
    seen: set[bytes] = set()

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        counts["spans"] += 1
                        counts["doubled"] += span.span_id in seen
                        seen.add(span.span_id)
            return trace_service_pb2.ExportTraceServiceResponse()

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            return metrics_service_pb2.ExportMetricsServiceResponse()

    class Logs(logs_service_pb2_grpc.LogsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            return logs_service_pb2.ExportLogsServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    orders.send("ready")
    orders.recv()
    orders.send(counts)
    server.stop(0)


@contextmanager
def child(target: Any, *args: Any) -> Iterator[Connection]:
    """A process of ``target`` and the way to talk to it."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=target, args=[theirs if arg is Connection else arg for arg in args], daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


class Load:
    """Admits sequences, has their records sent, and finishes them, at a rate."""

    def __init__(self, hub: Hub, orders: Connection, tokens: int) -> None:
        self._hub = hub
        self._orders = orders
        self._token_ids = tuple(range(tokens))
        self.sent = self.lost_by_worker = 0

    def run(self, rate: float, count: int) -> Iterator[None]:
        """Send ``count`` sequences; yields once a tick."""
        begun = time.monotonic()
        while self.sent < count:
            due = min(int((time.monotonic() - begun) * rate), count) - self.sent
            if due > 0:
                self._send(due)
            yield
            time.sleep(TICK_S)

    def _send(self, due: int) -> None:
        now, stamps = time.time_ns(), []
        for number in range(self.sent, self.sent + due):
            stamp = self._hub.admit(
                Admitted(
                    request_id=str(number), engine_id=f"{number}-0", sequence=0, operation="chat", model="m",
                    arrival_ns=now, prompt_tokens=100, temperature=0.7, top_p=0.95, max_tokens=512, stream=True,
                )
            )  # fmt: skip
            assert stamp is not None, "the hub refused a sequence"
            stamps.append(stamp)
        self.sent += due
        self._orders.send([str(stamp) for stamp in stamps])
        self.lost_by_worker = self._orders.recv()
        end = time.time_ns()
        for stamp in stamps:
            self._hub.finish(
                stamp.key, Finished(reason="stop", token_ids=self._token_ids, end_ns=end, first_chunk_s=0.02)
            )


def measure(options: argparse.Namespace, rate: float, count: int, max_mb: float, *, progress: bool) -> str:
    """One run; a row of the table."""
    own, others = _cores()
    with tempfile.TemporaryDirectory() as name:
        path, port = Path(name) / "requests.db", free_port()
        with (
            child(collector, port, Connection, others) as spans,
            child(reader, path, Connection, others, count) as rows,
            child(worker, Connection, others, options.tokens) as orders,
        ):
            spans.recv()
            os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"
            os.sched_setaffinity(0, own)
            hub = Hub(Settings(db=path, db_max_mb=max_mb), "m")
            hub.start()
            time.sleep(0.5)
            load, shown, wal = Load(hub, orders, options.tokens), 0, 0.0
            memory, begun, cpu = resident_mib(), time.monotonic(), time.process_time()
            for _ in load.run(rate, count):
                wal = max(wal, _mib(path, "-wal"))
                if progress and load.sent // (count // 10) > shown:
                    shown += 1
                    print(
                        f"| {load.sent} | {resident_mib():.0f} | {_mib(path):.0f} | {_mib(path, '-wal'):.0f} "
                        f"| {hub.counters.get(names.DROPPED)} |", flush=True,
                    )  # fmt: skip
            spent, took = time.process_time() - cpu, time.monotonic() - begun
            grown = resident_mib() - memory
            _settle(hub, count)
            hub.close()
            time.sleep(0.5)
            rows.send("stop")
            found: Rows = rows.recv()
            spans.send("stop")
            counts = spans.recv()
            orders.send(None)
    latencies = sorted(found.latencies)
    lost = hub.counters.get(names.DROPPED) + load.lost_by_worker
    return (
        f"| {rate:.0f} | {count / took:.0f} | {found.rows} of {count} | {found.doubled} | {counts['spans']} "
        f"| {counts['doubled']} | {lost} | {statistics.median(latencies) * 1e3:.0f} "
        f"| {latencies[int(len(latencies) * 0.99)] * 1e3:.0f} | {spent / took:.0%} | {grown:.0f} | {wal:.0f} |"
    )


def _settle(hub: Hub, count: int) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_S
    while time.monotonic() < deadline:
        if hub.counters.get(names.EXPORTED, signal="traces") + hub.counters.get(names.DROPPED, what="span") >= count:
            return
        time.sleep(0.1)


def _mib(path: Path, suffix: str = "") -> float:
    file = path.with_name(path.name + suffix)
    return file.stat().st_size / 2**20 if file.exists() else 0.0


def _cores() -> tuple[set[int], set[int]]:
    available = sorted(os.sched_getaffinity(0) | _all)
    return {available[0]}, set(available[1:]) or {available[0]}


_all = os.sched_getaffinity(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Finished requests a second on one core, and what they cost.")
    parser.add_argument("--rate", type=float, nargs="+", default=[1000, 2000, 3000], help="requests a second")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=16, help="of each sequence")
    parser.add_argument("--sequences", type=int, help="one run of so many, with memory and files as it goes")
    options = parser.parse_args()
    print(f"{processor()}; {versions('numpy', 'opentelemetry-sdk', 'protobuf')}; {options.tokens} tokens a sequence")
    if options.sequences:
        print("\n| sequences | resident, MiB | store, MiB | WAL, MiB | lost |\n| --- | --- | --- | --- | --- |")
        row = measure(options, options.rate[-1], options.sequences, 64, progress=True)
        print()
    heads = (
        "asked/s",
        "sent/s",
        "rows",
        "twice",
        "spans",
        "twice",
        "lost",
        "to row, ms",
        "p99",
        "core",
        "grown, MiB",
        "WAL, MiB",
    )
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    if options.sequences:
        print(row)
        return
    for rate in options.rate:
        print(measure(options, rate, int(rate * options.seconds), 1024, progress=False), flush=True)


if __name__ == "__main__":
    main()
