"""Whatever order records and ends come in: one report a sequence, its values right, or incomplete and saying so."""

import dataclasses

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
