"""The risk benchmark's report on a recorded part of its table; its loops; its sets. Without a model or an engine."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import pytest
from integration.bench.risk import faults, tasks
from integration.bench.risk.table import CALIBRATION, TEST, questions
from integration.harness.processes import ROOT


def report() -> str:
    command = [sys.executable, "-m", "integration.bench.risk", "--recorded"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line)]


def test_the_report_of_the_recorded_table_is_the_same_twice_and_puts_calibrated_first() -> None:
    text = report()
    assert report() == text
    rows = {cells[1].strip(): numbers(line) for line in text.splitlines() if len(cells := line.split("|")) > 3}
    peer, calibrated = rows["peer's documented formula"], rows["`calibrated`, 400 labels"]
    assert calibrated[0] > max(peer[0], rows["`prior`"][0], 0.75)
    assert calibrated[3] < peer[3], "ECE"
    assert rows["`baseline`, no labels"][0] > rows["peer's `risk_score`"][0] + 0.05, "on GSM8K, whose rows come last"


def test_loops_are_found_and_clean_text_is_not_taken_for_one() -> None:
    found = faults.loops(seed=3)
    for kind, least in (("exact", 0.98), ("jittered", 0.9), ("changing", 0.75)):
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
