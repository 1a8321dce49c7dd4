"""Whatever order records and ends come in: one report a sequence, its values right, or incomplete and saying so."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


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
def test_fuzz(kit, lengths, extra, drop, twice, shift, end_at, ends, random):
    scene = kit.Scene()
    outputs = [kit.Output(n, seed=i, extra=extra + 1, key=100 + i) for i, n in enumerate(lengths)]
    events = []
    lost = {output.key: set() for output in outputs}
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


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(0, 200), min_size=2, max_size=6),
    drop=st.sets(st.integers(0, 200), max_size=3),
    shift=st.integers(0, 20),
    loop=st.booleans(),
    random=st.randoms(use_true_random=False),
)
def test_together_or_alone_the_reports_are_the_same(kit, lengths, drop, shift, loop, random):
    """All sequences in one assembler, frames of many of them, few turns; or each on its own, a turn after each event."""
    outputs = [kit.Output(n, seed=i, extra=2, key=100 + i) for i, n in enumerate(lengths)]
    if loop:
        outputs[0].tokens[:] = np.resize([3, 4, 5], len(outputs[0].tokens))
    together, alone = kit.Scene(), {output.key: kit.Scene() for output in outputs}
    moments = {}  # what happens when, in order
    for output in outputs:
        together.admit(output.key)
        alone[output.key].admit(output.key)
        start = random.randrange(40)
        for i in range(output.n + 2):
            if i not in drop:
                moment = start + i + random.randrange(shift + 1)
                moments.setdefault(moment, []).append((output, output.rows([i]), output.sampled([i - 1] if i else [])))
        moments.setdefault(start + random.randrange(output.n + shift + 3), []).append((output, None, None))
    for _, events in sorted(moments.items()):
        frames = [event for event in events if event[1] is not None]
        for output, rows, sampled in events:
            if rows is None:
                together.assembler.finish(output.key, output.finished())
                alone[output.key].finish(output.key, output.finished())
        if frames:
            together.assembler.frame(
                kit.frame(np.concatenate([rows for _, rows, _ in frames]), np.concatenate([s for *_, s in frames]))
            )
        for output in outputs:
            mine = [event for event in frames if event[0] is output]
            if mine:
                scene = alone[output.key]
                scene.assembler.frame(
                    kit.frame(np.concatenate([rows for _, rows, _ in mine]), np.concatenate([s for *_, s in mine]))
                )
                scene.turn()
        if random.random() < 0.1:
            together.turn()
    for scene in (together, *alone.values()):
        scene.run_out()

    assert len(together.reports) == len(outputs)
    for report in together.reports:
        [other] = alone[int(report.admitted.request_id[1:])].reports
        for name in ("features", "risk"):
            for field in dataclasses.fields(getattr(report, name)):
                value = getattr(getattr(other, name), field.name)
                close = pytest.approx(value, rel=1e-9, abs=1e-9) if isinstance(value, float) else value
                assert getattr(getattr(report, name), field.name) == close, field.name
        assert (report.series is None) == (other.series is None)
        for name in ("entropy", "surprisal", "margin", "topk_mass") if report.series else ():
            np.testing.assert_allclose(getattr(report.series, name), getattr(other.series, name), rtol=1e-6)
        rest = {"features": None, "risk": None, "series": None}
        assert dataclasses.replace(report, **rest) == dataclasses.replace(other, **rest)
    assert together.lost() == sum(scene.lost() for scene in alone.values())
