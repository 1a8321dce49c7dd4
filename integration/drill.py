"""The restore drill of ``make drill``: ``python -m integration.drill [--rounds N] [--rows N] [--rate R]``.

Prints a table: for each kind of damage what was lost (RPO) and how long it took until the restored store had a new row
(RTO). The load is a real hub without an engine, so an engine's own start is not in these times.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from integration.bench.machine import processor, versions
from integration.bench.markdown import head, row
from tests.harness import drill


def _spread(values: Sequence[float], digits: str) -> str:
    return f"{statistics.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each kind of damage")
    parser.add_argument("--rows", type=int, default=20_000, help="in the store before the load begins")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument(
        "--interval", type=float, default=10.0, help="seconds from the backup to the destruction, at most"
    )
    given = parser.parse_args()
    noise = random.Random(20)
    with tempfile.TemporaryDirectory(prefix="corevital-drill-") as name:
        filled = Path(name) / "filled.db"
        drill.fill(filled, given.rows)
        size = filled.stat().st_size / 2**20
        print(
            f"{given.rows} requests ({size:.0f} MiB), then {given.rate:g} a second; destroyed at most "
            f"{given.interval:g} s after a backup; {given.rounds} rounds each; median (least to most)"
        )
        columns = "damage", "backup, s", "lost requests", "lost, s of traffic", "restore, s", "until a new row, s"
        head(*columns, "doubled", "lost later")
        for damage in drill.DAMAGES:
            found = [_round(filled, damage, given, noise) for _ in range(given.rounds)]
            row(
                damage,
                _spread([one.backup_s for one in found], ".1f"),
                _spread([one.lost for one in found], ".0f"),
                _spread([one.lost_s for one in found], ".1f"),
                _spread([one.restore_s for one in found], ".1f"),
                _spread([one.recovery_s for one in found], ".1f"),
                sum(one.doubled for one in found),
                sum(one.lost_after for one in found),
            )
    print(f"\n{processor()}; {versions('corevital', 'pydantic-core', 'numpy')}, SQLite {drill.SQLITE}")


def _round(filled: Path, damage: str, given: argparse.Namespace, noise: random.Random) -> drill.Outcome:
    with tempfile.TemporaryDirectory(prefix="corevital-drill-") as name:
        store = Path(name) / "corevital.db"
        shutil.copyfile(filled, store)
        return drill.run(store, damage, rate=given.rate, interval_s=given.interval, noise=noise)


if __name__ == "__main__":
    main()
