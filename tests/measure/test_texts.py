"""Loops, templates and prose, as SmolLM2 reads them.

``texts.json`` has the token ids of the texts in ``integration/bench/loops``, written by its ``--table``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corevital.frames.lifecycle import Finished
from corevital_otel.measure.loops import find
from corevital_otel.report import Health

TEXTS = json.loads((Path(__file__).parent / "texts.json").read_text())
LIMIT = 512


def judged(kit: Any, tokens: list[int], reason: str) -> Health:
    scene = kit.Scene()
    scene.admit()
    scene.finish(7, Finished(reason=reason, token_ids=tokens, end_ns=1))
    scene.run_out()
    health: Health = scene.reports[0].health
    return health


def test_legitimate_texts_are_not_loops(kit):
    legitimate = {name: judged(kit, tokens, "stop") for name, tokens in TEXTS["legitimate"].items()}
    assert len(legitimate) >= 44
    assert [name for name, health in legitimate.items() if health.fault_flags] == []
    assert sum(health.template_detected for health in legitimate.values()) >= 30, "seen, and not hidden"
    alone = [name for name, ids in TEXTS["legitimate"].items() if (one := find(np.array(ids, np.int32))) and one.loop]
    assert len(alone) <= 3, alone  # by tokens alone, the same line twenty times is a loop


@pytest.mark.parametrize("kind", ["exact", "long"])
def test_exact_loops_are_found_where_they_begin(kit, kind):
    close = []
    for opening, part in TEXTS[kind]:
        length = max(LIMIT, len(opening) + 4 * len(part))
        health = judged(kit, (opening + part * (length // len(part) + 1))[:length], "length")
        assert health.repetition_loop_detected, len(part)
        assert len(part) % health.loop_period == 0
        close.append(abs(health.loop_onset - len(opening)) <= 8)
    assert np.mean(close) >= 0.9


@pytest.mark.parametrize("name", TEXTS["near"])
def test_near_loops_are_found(kit, name):
    assert judged(kit, TEXTS["near"][name], "length").repetition_loop_detected
