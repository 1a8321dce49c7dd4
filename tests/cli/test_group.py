"""``corevital calibrate --group``, and what a missing column's message lists."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from corevital_otel.cli.calibrate import run
from corevital_otel.cli.errors import CommandError
from corevital_otel.conventions import FEATURES


def written(path: Path) -> Path:
    """Two tasks of very different difficulty; within each, entropy says a little."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        features = [name for name in FEATURES if name.startswith("entropy")]
        writer.writerow(["request_id", "zone", "verdict", *features])
        for i in range(300):
            hard = i % 2
            bad = rng.random() < (0.9 if hard else 0.1)
            entropy = np.exp(rng.normal(0, 0.3) + hard + 0.3 * bad)
            writer.writerow([f"r{i}", ("easy", "hard")[hard], int(bad), *([entropy] * len(features))])
    return path


def fit(path: Path, label: str, group: str | None) -> None:
    run(path, label, path.parent / "p.json", group=group, labels=None, bad=None, leave_out=())


@pytest.mark.slow
def test_within_groups_the_figures_are_the_scores_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(written(tmp_path / "runs.csv"), "verdict", "zone")
    text = capsys.readouterr().out
    pooled = float(text.split("AUROC ")[1][:4])
    line = next(line for line in text.splitlines() if line.startswith("within the 2 groups of zone: AUROC "))
    within, base = float(line.split("AUROC ")[1][:4]), float(line.split("alone gives ")[1][:4])
    assert 0.5 < within < pooled - 0.1
    assert base == pytest.approx(0.9, abs=0.04)
    assert "  easy: 150 runs" in text
    assert "  hard: 150 runs" in text
    fit(tmp_path / "runs.csv", "verdict", None)
    assert "within groups: --group COLUMN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "group", "first"),
    [("verdikt", None, "verdict, "), ("wrong", None, "verdict, zone, "), ("verdict", "task", "zone")],
)
def test_a_missing_column_lists_the_likely_ones_first(
    tmp_path: Path, label: str, group: str | None, first: str
) -> None:
    with pytest.raises(CommandError) as raised:
        fit(written(tmp_path / "runs.csv"), label, group)
    listed = str(raised.value).split("it has ")[1]
    assert listed.index(first) <= len("verdict, ")
    assert listed.index("request_id") < listed.index("entropy_")
