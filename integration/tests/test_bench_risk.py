"""The risk benchmark without a model or an engine: its report on a recorded part of its table, its loops, its sets."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from integration.bench.risk import faults, peer, tasks
from integration.bench.risk.table import CALIBRATION, TEST, questions
from tests.harness.processes import ROOT

from corevital_otel.report import Series

SURE = {"entropy": 0.1, "margin": 0.95, "topk_mass": 1.0, "surprisal": 0.1}


def report() -> str:
    command = [sys.executable, "-m", "integration.bench.risk", "--tables", "integration/bench/risk/recorded.csv"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout


def tables(text: str) -> dict[str, dict[str, list[float]]]:
    """Of each table, by its first heading: the numbers of each row."""
    found: dict[str, dict[str, list[float]]] = {}
    for block in text.split("\n\n"):
        rows = [line.split(" | ") for line in block.splitlines() if line.startswith("| ")]
        numbers = {row[0][2:]: [float(n) for n in re.findall(r"-?\d+\.\d+", " ".join(row[1:]))] for row in rows[2:]}
        if rows:
            found[f"{rows[0][0][2:]} {rows[0][1]}"] = numbers
    return found


def test_the_report_of_the_recorded_table_is_the_same_twice_and_puts_calibrated_first() -> None:
    text = report()
    assert report() == text
    found = tables(text)
    scores = found["score AUROC within tasks"]
    auroc, skill = ({name: row[at] for name, row in scores.items() if len(row) == 9} for at in (0, 6))
    best = "`calibrated`, 400 labels"
    assert auroc[best] > max(auroc["peer's documented formula"], auroc["`prior`"], auroc["`baseline`, no labels"], 0.8)
    assert skill[best] > max(skill["peer's documented formula"], 0.2)
    gsm8k = found["score AUROC, 95 % interval"]
    assert gsm8k["`baseline`, no labels"][0] > gsm8k["peer's `risk_score`"][0] + 0.05


def test_loops_are_found_and_clean_text_is_not_taken_for_one() -> None:
    found = faults.loops(seed=3)
    for kind, least in (("exact", 0.98), ("jittered", 0.9), ("changing", 0.75)):  # the last as templates
        assert min(found[kind].running, found[kind].ended) >= least
    assert found["clean"].n > 300
    assert max(found["clean"].running, found["clean"].ended) <= 0.01


def test_no_prompt_is_in_both_sets_and_every_kind_is_asked_alike() -> None:
    asked = questions(0)
    prompts = [{task.prompt for name, task in asked if name == which} for which in ("calibration", "test")]
    assert not prompts[0] & prompts[1]
    assert len(asked) == CALIBRATION + TEST
    assert {sum(task.kind == kind for _, task in asked) for kind in tasks.KINDS} == {len(asked) // len(tasks.KINDS)}


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_what_is_taught_is_right_unless_it_was_planted(kind: str) -> None:
    some = [task for task in itertools.islice(tasks.draw("test"), 4000) if task.kind == kind]
    right = [task for task in some if tasks.right(task, task.taught)]
    planted = [task for task in some if task.planted]
    assert 0.05 < len(planted) / len(some) < 0.2
    # a planted error is right by chance now and then; of a disputed capital two are taught
    assert sum(task.planted for task in right) < 0.4 * len(planted)
    assert len(right) > 0.75 * len(some)


def test_the_peers_formula_is_the_documented_one() -> None:
    values = {"entropy": 4.0, "margin": 0.05, "topk_mass": 0.6, "surprisal": 5.0}
    steady = Series(**{name: np.full(12, value, np.float32) for name, value in values.items()})
    # 4 / 8 x 0.3 + (1 - 0.05 x 5) x 0.2 + (1 - 0.6) x 0.15 + 0.1, and no trend and no compound signal
    assert peer.risk(steady, []) == pytest.approx(0.15 + 0.15 + 0.06 + 0.1, abs=1e-6)
    assert peer.risk(steady, ["repetition_loop_detected"]) == 1.0
    assert peer.risk(steady, ["nan_detected"]) == 1.0
    sure = Series(**{name: np.full(12, value, np.float32) for name, value in (values | SURE).items()})
    assert peer.risk(sure, []) == pytest.approx(0.3, abs=1e-6), "confident repetition risk alone"
