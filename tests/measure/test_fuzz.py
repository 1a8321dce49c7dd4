"""Records and ends in any order: one report a sequence, its values right, or marked incomplete."""

import dataclasses
import itertools
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from corevital_otel.report import RequestReport


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    extra=st.integers(0, 5),
    drop=st.sets(st.integers(0, 200), max_size=4),
    twice=st.sets(st.integers(0, 200), max_size=4),
    shift=st.integers(0, 12),
    end_at=st.lists(st.floats(0.0, 1.2), min_size=4, max_size=4),
    ends=st.integers(1, 2),
    random=st.randoms(use_true_random=False),
)
@example(lengths=[1], extra=0, drop={0}, twice=set(), shift=0, end_at=[0.0] * 4, ends=1, random=Random(0))  # no record
def test_fuzz(kit, lengths, extra, drop, twice, shift, end_at, ends, random):
    scene = kit.Scene()
    outputs = [kit.Output(n, seed=i, extra=extra + 1, key=100 + i) for i, n in enumerate(lengths)]
    events = []
    lost: dict[int, set[int]] = {output.key: set() for output in outputs}
    for output, at in zip(outputs, end_at, strict=False):
        scene.admit(output.key)
        for i, step in enumerate(output.steps()):
            if i in drop:
                lost[output.key].add(i)
            else:
                for _ in range(1 + (i in twice)):
                    events.append((i + random.uniform(0, shift), lambda step=step: scene.assembler.frame(step)))
        finish = at * (output.n + extra)
        for again in range(ends):
            end = output.finished()
            events.append((finish + again, lambda o=output, end=end: scene.assembler.finish(o.key, end)))
    for _, event in sorted(events, key=lambda event: event[0]):
        event()
        scene.assembler.tick(scene.now)
    scene.run_out()

    assert sorted(r.admitted.request_id for r in scene.reports) == sorted(f"r{output.key}" for output in outputs)
    assert scene.assembler.running == scene.assembler.looping == len(scene.assembler._windows) == 0
    for report in scene.reports:
        output = next(o for o in outputs if f"r{o.key}" == report.admitted.request_id)
        gone = {i for i in lost[output.key] if i < output.n}
        assert report.incomplete == bool(gone)
        assert report.features.tokens == output.n - len(gone)
        wanted = output.features(set(range(output.n)) - gone)
        if report.features.surprisal_estimated:  # what the lost frames or an early report knew of the tokens before
            at_most = len({i - 1 for i in lost[output.key]}) + shift + 1
            assert report.features.surprisal_estimated <= at_most
            names = [f.name for f in dataclasses.fields(wanted) if "surprisal" in f.name or f.name == "perplexity"]
            wanted = dataclasses.replace(wanted, **{name: getattr(report.features, name) for name in names})
        kit.check(report.features, wanted)


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(0, 160), min_size=2, max_size=5),
    drop=st.sets(st.integers(0, 160), max_size=3),
    shift=st.integers(0, 20),
    loop=st.booleans(),
    random=st.randoms(use_true_random=False),
)
def test_together_or_alone_the_reports_are_the_same(kit, lengths, drop, shift, loop, random):
    """All sequences in one assembler, in the same frames and few turns; or each on its own, a turn after each event."""
    outputs = [kit.Output(n, seed=i, extra=2, key=100 + i) for i, n in enumerate(lengths)]
    if loop:
        outputs[0].tokens[:] = np.resize([3, 4, 5], len(outputs[0].tokens))
    together, alone = kit.Scene(), [kit.Scene() for _ in outputs]
    events = []  # (moment, sequence, its step's frame or None for its end)
    for number, output in enumerate(outputs):
        together.admit(output.key)
        alone[number].admit(output.key)
        start = random.randrange(40)
        for i, step in enumerate(output.steps()):
            # Only the row is lost: what a token is worth that no record names may depend on when it is folded.
            sent = kit.frame(sampled=step.sampled) if i in drop else step
            events.append((start + i + random.randrange(shift + 1), number, sent))
        events.append((start + random.randrange(output.n + shift + 3), number, None))
    events.sort(key=lambda event: event[0])
    for _, group in itertools.groupby(events, key=lambda event: event[0]):
        now = list(group)
        for _, number, step in now:
            if step is None:
                together.assembler.finish(outputs[number].key, outputs[number].finished())
                alone[number].finish(outputs[number].key, outputs[number].finished())
            else:
                alone[number].assembler.frame(step)
                alone[number].turn()
        steps = [step for *_, step in now if step is not None]
        if steps:
            rows, sampled = ([getattr(step, name) for step in steps] for name in ("rows", "sampled"))
            together.assembler.frame(kit.frame(np.concatenate(rows), np.concatenate(sampled)))
        if random.random() < 0.1:
            together.turn()
    for scene in (together, *alone):
        scene.run_out()
    assert len(together.reports) == len(outputs)
    for report in together.reports:
        [other] = alone[int(report.admitted.engine_id[1:]) - 100].reports
        same(report, other)
    for why in ("missing", "other_tokens", "too_long", "index_out_of_range"):
        assert together.lost(why=why) == sum(scene.lost(why=why) for scene in alone)


def same(report: RequestReport, other: RequestReport) -> None:
    """Equal up to rounding."""
    for name in ("features", "risk"):
        found, wanted = (dataclasses.asdict(getattr(each, name)) for each in (report, other))
        for key, value in wanted.items():
            assert found[key] == (pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value), key
    assert (report.series is None) == (other.series is None)
    if report.series is not None:
        for name in ("entropy", "surprisal", "margin", "topk_mass"):
            np.testing.assert_allclose(getattr(report.series, name), getattr(other.series, name), rtol=1e-5, atol=1e-6)
    for each in (report, other):  # how many were counted while it ran depends on when they were folded
        assert 0 <= each.counted <= each.features.tokens
    rest: dict[str, Any] = {"features": None, "risk": None, "series": None, "counted": 0}
    if not report.outcome.token_ids:  # a record may or may not have come before the report and named the runner
        rest["runner"] = rest["stage"] = None
    assert dataclasses.replace(report, **rest) == dataclasses.replace(other, **rest)
