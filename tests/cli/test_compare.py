"""`corevital compare`: what it finds, what it does not, and one clear line for a wrong name."""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from corevital_otel.compare.slices import Slice, SliceError
from corevital_otel.compare.verdict import Comparison, compare
from corevital_otel.store.reader import StoredReport

CPU = {"corevital.engine.dtype": "float32", "corevital.device.type": "cpu"}


def read(path: Path) -> list[StoredReport]:
    return Slice.parse(str(path)).read()[0]


@pytest.fixture
def compared(store: Any, traffic: Any) -> Any:
    numbers = itertools.count()

    def run(a: dict[str, Any], b: dict[str, Any], *, exact: bool = False) -> Comparison:
        first, second = (read(store(f"{next(numbers)}.db", traffic(**kind))) for kind in (a, b))
        return compare(first, second, exact=exact)

    return run


def test_the_same_traffic_is_the_same(compared: Any) -> None:
    a, b = ({"count": 200, "seed": seed, "prompts": 100, "noise": 0.02} for seed in (1, 2))
    found = compared(a, b)
    assert found.verdict == "same", found.reasons
    assert found.matched == 100
    assert found.requests_needed is None
    assert {shift.change for shift in found.signals} == {"same"}


def test_a_shift_is_worse_in_one_direction_and_better_in_the_other(compared: Any) -> None:
    a, b = {"count": 600, "seed": 1}, {"count": 600, "seed": 2, "first": 5000, "shift": 0.8}
    worse, better = compared(a, b), compared(b, a)
    assert (worse.verdict, better.verdict) == ("worse", "better")
    assert worse.matched is None
    shift = next(one for one in worse.signals if one.signal == "entropy_mean")
    assert 0 < shift.low < 0.2 < shift.high
    assert shift.p < 0.001
    assert any(reason.startswith("entropy_mean +") for reason in worse.reasons)
    assert next(one for one in worse.signals if one.signal == "margin_mean").change == "worse", "low margins are bad"


def test_prompts_matched_by_hash_show_what_others_cannot(compared: Any) -> None:
    a, b = ({"count": 60, "seed": seed, "noise": 0.05, "temperature": 0.7} for seed in (1, 2))
    b["shift"] = 0.1
    blind = compared(a, b | {"first": 5000})
    assert blind.verdict == "cannot say yet"
    assert blind.reasons == ["too few requests"]
    assert 300 < blind.requests_needed < 3000
    sharp = compared(a | {"prompts": 60}, b | {"prompts": 60})
    assert (sharp.verdict, sharp.matched) == ("worse", 60)


def test_the_traffic_that_was_named_is_enough(compared: Any) -> None:
    a, b = {"count": 60, "seed": 1}, {"count": 60, "seed": 2, "first": 5000}
    needed = compared(a, b).requests_needed
    more = compared(a | {"count": int(1.2 * needed)}, b | {"count": int(1.2 * needed)})
    assert more.verdict == "same", (needed, more.reasons)


def test_few_requests_are_never_judged(compared: Any) -> None:
    found = compared({"count": 20, "seed": 1, "prompts": 20}, {"count": 20, "seed": 2, "prompts": 20, "shift": 5.0})
    assert found.verdict == "cannot say yet"
    assert found.requests_needed >= 30


def test_answers_that_differ_from_those_of_the_same_prompt(compared: Any) -> None:
    """No mean moves: each prompt's numbers do, by more than its own repeats differ."""
    a = {"count": 200, "seed": 1, "prompts": 100, "noise": 1e-6}
    found = compared(a, {"count": 100, "seed": 2, "prompts": 100, "noise": 0.01})
    assert found.verdict == "worse"
    assert {shift.change for shift in found.signals} == {"same"}
    assert (found.fidelity.prompts, found.fidelity.repeated) == (100, 100)
    assert found.fidelity.differ > 90
    assert compared(a, {"count": 100, "seed": 2, "prompts": 100, "noise": 1e-6}).fidelity.differ == 0
    noisy = compared(a | {"noise": 0.01}, {"count": 100, "seed": 2, "prompts": 100, "noise": 0.01})
    assert noisy.verdict == "same", "an engine that does not repeat itself"
    assert noisy.fidelity.differ < 50
    sampled = compared(
        a | {"temperature": 0.7}, {"count": 100, "seed": 2, "prompts": 100, "noise": 0.01, "temperature": 0.7}
    )
    assert sampled.fidelity is None


def test_without_repeats_only_float32_is_known_to_repeat_itself(compared: Any) -> None:
    a, b = ({"count": 100, "seed": seed, "prompts": 100, "noise": 0.01} for seed in (1, 2))
    assert compared(a, b).verdict == "same"
    found = compared(a, b, exact=True)
    assert (found.verdict, found.fidelity.repeated) == ("worse", 0)
    assert compared(a, a, exact=True).verdict == "same"


def test_flags_have_rates_with_intervals(compared: Any) -> None:
    a, b = {"count": 200, "seed": 1}, {"count": 200, "seed": 2, "first": 5000, "loops": 0.2}
    found = compared(a, b)
    rate = next(one for one in found.flags if one.flag == "repetition_loop_detected")
    assert (rate.a, rate.change) == (0.0, "worse")
    assert rate.b_interval[0] < 0.2 < rate.b_interval[1]
    assert 0.01 < rate.a_interval[1] < 0.03, "none of 200 may still be one of 50"
    assert found.verdict == "worse"
    assert any(reason.startswith("repetition_loop_detected in ") for reason in found.reasons)


def test_other_prompts_are_not_blamed_on_the_model(compared: Any) -> None:
    a, b = {"count": 300, "seed": 1}, {"count": 300, "seed": 2, "first": 5000, "prompt_tokens": 40, "shift": 2.0}
    found = compared(a, b)
    assert found.verdict == "cannot say yet"
    assert "prompts" in found.reasons[0]


def test_repeated_prompts_count_once(compared: Any) -> None:
    """Ten prompts, each sent twenty times: 200 requests that know no more than ten."""
    a, b = {"count": 200, "seed": 1, "prompts": 10}, {"count": 200, "seed": 2, "prompts": 10, "first": 50}
    assert compared(a, b).verdict == "cannot say yet"


@pytest.mark.slow
def test_few_false_alarms(store: Any, traffic: Any) -> None:
    """The command for the demo model's rows is integration/bench/compare.py; here 60 pairs of made ones."""
    pool = read(store("pool.db", traffic(count=2000, seed=1, loops=0.05)))
    rng = random.Random(0)
    found: Counter[str] = Counter()
    for _ in range(60):
        drawn = rng.sample(pool, 120)
        found[compare(drawn[:60], drawn[60:]).verdict] += 1
    assert found["worse"] + found["better"] <= 3, found


def test_slices_of_one_store(store: Any, traffic: Any, cli: Any, command: Any) -> None:
    old, new = traffic(count=200, seed=1, engine_version="1.0"), traffic(count=200, seed=2, first=5000, shift=2.0)
    path = store("both.db", [*old, *new])
    done = cli("compare", f"{path}@engine.version=1.0", f"{path}@engine.version=0.32.0", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "worse"
    assert found["requests"] == [200, 200]
    assert done.stderr == ""
    shown = command("compare", f"{path}@corevital.engine.version=1.0", f"{path}@engine.version=0.32.0").output
    assert "entropy_mean (bits)" in shown
    assert "verdict: worse; entropy_mean +" in shown
    assert command("compare", f"{path}@model=tiny", str(path)).status == 0
    now = datetime.now(UTC)
    span = f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M:%S}..{now + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}"
    assert len(Slice.parse(f"{path}@{span}").read()[0]) == 400
    with pytest.raises(SliceError, match="has no requests"):
        Slice.parse(f"{path}@..{now - timedelta(hours=1):%Y-%m-%d}").read()


def test_attributes_of_the_resource_make_a_slice(store: Any, traffic: Any) -> None:
    path = store("r.db", traffic(count=3, seed=1), CPU | {"service.name": "x"})
    assert len(Slice.parse(f"{path}@engine.dtype=float32").read()[0]) == 3
    assert len(Slice.parse(f"{path}@service.name=x").read()[0]) == 3
    assert Slice.parse(str(path)).is_exact()
    for name, resource in (("none", None), ("gpu", CPU | {"corevital.device.type": "cuda"})):
        assert not Slice.parse(str(store(f"{name}.db", traffic(count=1, seed=1), resource))).is_exact()


def test_a_path_may_have_an_at_sign(store: Any, traffic: Any) -> None:
    path = store("a@b.db", traffic(count=2, seed=1))
    assert len(read(path)) == 2
    assert Slice.parse(f"{path}@model=tiny").path == path


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("none.db", 1, "there is no store at none.db: serve some requests first"),
        ("a.db@", 2, "neither a time span nor an attribute"),
        ("a.db@yesterday", 2, "neither a time span nor an attribute"),
        ("a.db@..", 2, "neither a time span nor an attribute"),
        ("a.db@soon..", 2, "'soon' is not a time in ISO 8601"),
        ("a.db@=1", 2, "its attribute has no name"),
        ("a.db@engine.version=9", 1, "a.db@engine.version=9 has no requests: widen the slice"),
        ("old.db", 1, "has schema 2, this version reads 4: run `corevital db migrate`"),
        ("text.db", 1, "cannot be read"),
    ],
)
def test_a_wrong_side_is_one_line(store: Any, traffic: Any, command: Any, name: str, status: int, message: str) -> None:
    path = store("a.db", traffic(count=40, seed=1))
    old = store("old.db", traffic(count=1, seed=1))
    with sqlite3.connect(old) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    (path.parent / "text.db").write_text("not a store" * 100)
    done = command("compare", "a.db", name)
    assert done.status == status
    assert done.output == ""
    assert message in done.error


def test_without_the_extra_there_is_one_line(store: Any, traffic: Any, cli: Any, tmp_path: Path) -> None:
    store("a.db", traffic(count=2, seed=1))
    hidden = tmp_path / "hidden/scipy"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError('stand-in: scipy is not installed', name='scipy')")
    done = cli("compare", "a.db", "a.db", PYTHONPATH=f"{hidden.parent}:{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 1
    assert done.stderr == "corevital: this needs scipy: pip install 'corevital[calibrate]'\n"
