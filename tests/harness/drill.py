"""A restore drill: a store is backed up under load, destroyed, restored and written on. ``make drill`` runs it in full.

The load is a process with a real hub (:mod:`tests.harness.hub_load`). It has no engine, and its requests have no
tokens. The backup and the restore are the commands that a user has.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.conftest import make_report
from tests.harness.processes import environment, within

from corevital_otel.counters import Counters
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

SQLITE: Final = sqlite3.sqlite_version
_PATIENCE_S: Final = 120.0
_AFTER_S: Final = 0.5
"""How long the restored store is written on."""


def _cut(store: Path) -> None:
    os.truncate(store, store.stat().st_size // 2)


def _empty(store: Path) -> None:
    os.truncate(store, 0)


def _delete(store: Path) -> None:
    for file in (store, *_beside(store)):
        file.unlink(missing_ok=True)


def _overwrite_header(store: Path) -> None:
    with store.open("r+b") as file:
        file.write(random.Random(0).randbytes(100))


def _overwrite_pages(store: Path) -> None:
    noise = random.Random(0)
    with store.open("r+b") as file:
        for page in range(4096, store.stat().st_size, 16 * 4096):
            file.seek(page)
            file.write(noise.randbytes(4096))


DAMAGES: Final[Mapping[str, Callable[[Path], None]]] = {
    "cut to half": _cut,
    "cut to nothing": _empty,
    "deleted": _delete,
    "header overwritten": _overwrite_header,
    "each 16th page overwritten": _overwrite_pages,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round measured. Times in seconds.

    Attributes:
        rows: in the restored store.
        finished: requests that had finished when the first server had stopped.
        lost: of them, those that are not in the store at the end: the RPO in rows.
        lost_s: from the end of the first that is lost to the destruction: the RPO in time.
        backup_s, restore_s: how long the commands took.
        recovery_s: from the destruction to the first new row in the restored store: the RTO, with nobody to wait for.
        lost_after: requests of the second server that are not in the store at its end.
        doubled: requests with two rows.
    """

    rows: int
    finished: int
    lost: int
    lost_s: float
    backup_s: float
    restore_s: float
    recovery_s: float
    lost_after: int
    doubled: int


@dataclass
class _Load:
    """A server under load. ``ends`` has when each request finished, by its name."""

    process: subprocess.Popen[bytes]
    ends: dict[str, float] = field(default_factory=dict)

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.ends[line.decode().strip()] = time.monotonic()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(_PATIENCE_S) == 0


@contextmanager
def _load(store: Path, prefix: str, rate: float) -> Iterator[_Load]:
    command = [sys.executable, "-m", "tests.harness.hub_load", "--prefix", prefix, "--rate", str(rate)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=_environment(store), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
    ) as process:
        load = _Load(process)
        reader = threading.Thread(target=load.read)
        reader.start()
        try:
            yield load
        finally:
            process.kill()
            reader.join()


def run(store: Path, damage: str, *, rate: float, interval_s: float, noise: random.Random) -> Outcome:
    """One round.

    Args:
        store: one of :func:`fill`, or a copy; the backup goes into its folder.
        damage: one of :data:`DAMAGES`.
        rate: requests a second.
        interval_s: the destruction comes at a random moment in this time after the backup.
        noise: draws that moment.

    Raises:
        AssertionError: a command fails, or the restored store is not the backup or fails its integrity check.
    """
    backup = store.with_name("backup.db")
    rows = len(_names(store))
    with _load(store, "first-", rate) as load:
        within(_PATIENCE_S, lambda: len(_names(store)) > rows + rate / 2)
        backup_s = command(store, "backup", str(backup))
        time.sleep(noise.uniform(0, interval_s))
        destroyed = time.monotonic()
        DAMAGES[damage](store)
        load.stop()
    finished = dict(load.ends)
    restore_s = command(store, "restore", str(backup))
    restored = _names(store)
    assert restored == _names(backup), "all of the backup, and nothing else"
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with _load(store, "second-", rate) as load:
        within(_PATIENCE_S, lambda: len(_names(store)) > len(restored))
        recovery_s = time.monotonic() - destroyed
        time.sleep(_AFTER_S)
        load.stop()
    at_last = _names(store)
    lost = [end for name, end in finished.items() if name not in set(at_last)]
    return Outcome(
        rows=len(restored),
        finished=rows + len(finished),
        lost=len(lost),
        lost_s=destroyed - min(lost) if lost else 0.0,
        backup_s=backup_s,
        restore_s=restore_s,
        recovery_s=recovery_s,
        lost_after=len(load.ends.keys() - set(at_last)),
        doubled=len(at_last) - len(set(at_last)),
    )


def fill(store: Path, rows: int) -> None:
    """Make a store with so many requests, each with a series of 200 tokens."""
    writer = StoreWriter(store, 36500, 10_000, Counters())
    report = make_report(tokens=200, end_ns=time.time_ns())
    for number in range(rows):
        ids = SpanIds(f"{number + 1:032x}", f"{number + 1:016x}")
        writer.put(replace(record_of(report, ids), request_id=f"filled-{number}"))
        while writer.waiting > 5000:
            time.sleep(0.01)
    writer.close(_PATIENCE_S)
    assert len(_names(store)) == rows


def command(store: Path, *arguments: str) -> float:
    """Run ``corevital db`` with these arguments on a store. Returns how long that took, seconds."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "corevital_otel.cli", "db", *arguments, "--db", str(store)],
        env=_environment(store), capture_output=True, text=True, timeout=_PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begun


def _environment(store: Path) -> dict[str, str]:
    return environment({"COREVITAL_DB": str(store), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


def _beside(store: Path) -> Iterator[Path]:
    for ending in ("-wal", "-shm"):
        yield store.with_name(f"{store.name}{ending}")


def _names(store: Path) -> list[str]:
    """The ids of a store's requests; none where there is no store yet."""
    try:
        with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
            return [name for (name,) in connection.execute("SELECT request_id FROM reports")]
    except sqlite3.OperationalError:
        return []
