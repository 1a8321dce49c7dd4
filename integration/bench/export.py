"""Time and memory of ``corevital db export``: ``python -m integration.bench.export --rows 1000000``.

Fills a store with copies of one request, each with its own ids, time and mean entropy, and exports it in each format.
Prints one line a format: rows, seconds, the highest memory of the process that exports, the file's size.
"""

from __future__ import annotations

import argparse
import dataclasses
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from integration.bench.store import make_report

from corevital_otel.counters import Counters
from corevital_otel.report import Series
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.tables import FORMATS
from corevital_otel.store.writer import StoreWriter

# not ru_maxrss, which counts the process that this one was forked from
MEASURED = """
import re, sys
from pathlib import Path
from corevital_otel.cli.app import app
app(sys.argv[1:], standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
COPY = """
WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
INSERT INTO reports (request_id, created_at_utc, model, finish_reason, prompt_tokens, output_tokens, risk_score,
  risk_level, risk_basis, trace_id, span_id, flags, summary, series, start_ns, end_ns)
SELECT printf('chatcmpl-%032x', i), strftime('%Y-%m-%dT%H:%M:%fZ', 1.7e9 + i, 'unixepoch'), model, finish_reason,
  prompt_tokens, output_tokens, i % 100 / 100.0, risk_level, risk_basis, printf('%032x', i), printf('%016x', i), flags,
  json_set(summary,
  '$."gen_ai.response.id"', printf('chatcmpl-%032x', i), '$."corevital.entropy.mean"', i % 977 / 97.7),
  series, start_ns, end_ns FROM n, reports WHERE id = 1
"""


def fill(path: Path, rows: int, tokens: int) -> None:
    """Make a store of so many rows; with tokens, each has a series."""
    values = np.random.default_rng(0).random(tokens, np.float32)
    series = Series(entropy=values, surprisal=values, margin=values, topk_mass=values) if tokens else None
    writer = StoreWriter(path, 36500, 1 << 20, Counters())
    writer.put(record_of(dataclasses.replace(make_report(1), series=series), SpanIds("1" * 32, "f" * 16)))
    writer.close(10)
    with sqlite3.connect(path) as connection:
        connection.execute(COPY.format(rows=rows))
    connection.close()


def export(path: Path, target: Path, *options: str) -> tuple[float, float]:
    """Run ``corevital db export``. Returns seconds, and the highest memory of its process in MiB."""
    command = [sys.executable, "-c", MEASURED, "db", "export", "--db", str(path), "--out", str(target), *options]
    begun = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - begun, int(done.stdout.splitlines()[-1]) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=0, help="of each request's series; they are exported then")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=FORMATS)
    parser.add_argument("--folder", type=Path, help="with room for 8 KB a row")
    parser.add_argument("--store", type=Path, help="a store to use instead, such as one that an earlier run kept")
    parser.add_argument("--keep", type=Path, help="where to keep the store")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = given.store or Path(folder, "corevital.db")
        if given.store is None:
            fill(path, given.rows, given.tokens)
        print(f"store: {given.rows} rows, {path.stat().st_size / 2**20:.0f} MiB", flush=True)
        for kind in given.formats:
            target = Path(folder, f"table.{kind}")
            seconds, memory = export(path, target, "--format", kind, *(["--series"] if given.tokens else []))
            size = target.stat().st_size / 2**20
            print(f"{kind}: {seconds:.0f} s, at most {memory:.0f} MiB of memory, file {size:.0f} MiB", flush=True)
            target.unlink()
        if given.keep is not None:
            path.rename(given.keep)


if __name__ == "__main__":
    main()
