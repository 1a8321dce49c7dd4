"""The restore drill in short: what is lost is what came after the backup, and the restored store is written on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.harness import drill


@pytest.mark.parametrize(
    "damage",
    [
        "header overwritten",
        *(pytest.param(damage, marks=pytest.mark.slow) for damage in drill.DAMAGES if damage != "header overwritten"),
    ],
)
def test_a_destroyed_store_is_restored_and_written_on(tmp_path: Path, damage: str) -> None:
    store = tmp_path / "corevital.db"
    drill.fill(store, 200)
    done = drill.run(store, damage, rate=200, interval_s=0.5, noise=random.Random(1))
    assert 200 < done.rows <= done.finished
    assert done.lost == done.finished - done.rows, "all of the backup is there, and nothing else"
    assert done.lost_s < 0.5 + done.backup_s + 1.0
    assert (done.lost_after, done.doubled) == (0, 0)
