"""The store's cost per report, and a report's wait for its row: ``python -m integration.bench.store``.

One thread puts reports at a rate, as the hub does, and settles them at once. Prints one line: CPU time per report (all
threads), rows written, losses, the age of a report when its row is committed, memory and file sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel.counters import Counters
from corevital_otel.report import Features, Health, RequestReport, Risk
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter


def make_report(number: int) -> RequestReport:
    admitted = Admitted(
        request_id=f"chatcmpl-{number:032x}", engine_id=f"e{number}", sequence=0, operation="chat", model="bench",
        arrival_ns=time.time_ns(), prompt_tokens=100, temperature=0.7, top_p=0.9, max_tokens=256, seed=number,
    )  # fmt: skip
    values: dict[str, Any] = {
        field.name: number % 97 / 7 for field in dataclasses.fields(Features) if "int" not in str(field.type)
    }
    return RequestReport(
        admitted=admitted,
        outcome=Finished(reason="stop", token_ids=range(200), end_ns=time.time_ns(), first_chunk_s=0.1),
        features=Features(tokens=200, **values),
        health=Health(),
        risk=Risk(score=0.25, level="low", factors=("entropy peak 6.2 bits",)),
    )


def memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(path: Path, count: int, rate: float, max_mb: float) -> str:
    counters = Counters()
    writer = StoreWriter(path, 30, max_mb, counters)
    ages: list[float] = []
    log = peak = largest = 0.0
    begun = time.monotonic()
    spent = time.process_time()
    making = 0.0
    backlog = 0
    put_at: list[float] = []
    stop = threading.Event()

    def watch() -> None:  # a report is as old as the wait of the first that waits
        nonlocal log, peak, largest, backlog
        while not stop.wait(0.02):
            waiting = writer.waiting
            backlog = max(backlog, waiting)
            if waiting and len(put_at) >= waiting:
                ages.append(time.monotonic() - put_at[-waiting])
            wal = Path(f"{path}-wal")
            log = max(log, wal.stat().st_size if wal.exists() else 0)
            largest = max(largest, path.stat().st_size if path.exists() else 0)
            peak = max(peak, memory_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for number in range(count):
        ahead = begun + number / rate - time.monotonic()
        if ahead > 0.001:
            time.sleep(ahead)
        start = time.thread_time()
        span = f"{number:016x}"
        record = record_of(make_report(number), SpanIds("1" * 32, span, None, True))
        making += time.thread_time() - start
        put_at.append(time.monotonic())
        writer.put(record)
        writer.settle([span], True)
    writer.close(60)
    took = time.monotonic() - begun
    stop.set()
    watcher.join()
    spent = time.process_time() - spent - making
    with sqlite3.connect(path) as connection:
        rows, sent = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE export = 'sent') FROM reports"
        ).fetchone()
    connection.close()
    p99 = float(np.quantile(ages, 0.99)) if ages else 0.0
    return (
        f"{count / took:.0f} reports/s, {1e6 * spent / count:.0f} us of CPU a report, {rows} rows ({sent} sent), "
        f"{counters.get('corevital.telemetry.dropped')} lost, wait for the disk p99 {p99:.2f} s, backlog {backlog}, "
        f"memory {peak:.0f} MB, file {largest / 2**20:.0f} MB, log {log / 2**20:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=int, default=30_000)
    parser.add_argument("--rate", type=float, default=3000.0)
    parser.add_argument("--max-mb", type=float, default=1024)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        print(run(Path(folder, "corevital.db"), given.reports, given.rate, given.max_mb))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
