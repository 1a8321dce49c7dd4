"""Nothing grows without bound, for any records and for sequences that never end."""

import gc
import tracemalloc

import pytest

from corevital.frames.lifecycle import Finished
from corevital_otel.measure.windows import FURTHEST


def test_an_absurd_index_is_dropped(kit):
    output = kit.Output(80, extra=1)
    scene = kit.Scene()
    scene.admit()
    rows = output.rows([0])
    rows["index"] = 2**32 - 1
    for step in output.steps():
        scene.assembler.frame(step)
        scene.assembler.frame(kit.frame(rows))
    scene.finish(7, output.finished())
    kit.check(scene.reports[0].features, output.features())
    assert scene.lost(why="index_out_of_range") == 81


def test_a_long_gap_is_survived(kit):
    output = kit.Output(20)
    rows = output.rows(range(20))
    rows["index"][10:] += FURTHEST - 100
    scene = kit.Scene()
    scene.admit()
    scene.assembler.frame(kit.frame(rows))
    tokens = [1] * (int(rows["index"][-1]) + 1)
    scene.finish(7, Finished(reason="stop", token_ids=tokens, end_ns=1))
    scene.run_out()
    [report] = scene.reports
    assert (report.incomplete, report.features.tokens, len(report.series)) == (True, 20, len(tokens))


@pytest.mark.parametrize("limit", ["max_live", "max_windows"])
def test_leaked_sequences_are_bounded(kit, limit):
    scene = kit.Scene(**{limit: 3})
    for key in range(10, 20):
        output = kit.Output(3, key=key)
        scene.admit(key)
        scene.assembler.frame(output.steps()[0])
    assert [report.admitted.request_id for report in scene.reports] == [f"r{key}" for key in range(10, 17)]
    assert all(report.incomplete for report in scene.reports)
    assert scene.lost(what="sequence", why="too_many_live") == 7


def test_a_report_made_to_free_a_window_leaves_none_behind(kit):
    """The sequence whose record needs a window is itself ready to be reported."""
    scene = kit.Scene(max_windows=1)
    running, aborted = kit.Output(3, key=1), kit.Output(3, key=2)
    scene.admit(1)
    scene.admit(2)
    scene.assembler.frame(running.steps()[0])
    scene.assembler.finish(2, Finished(reason="abort", token_ids=(), end_ns=1))
    scene.assembler.frame(aborted.steps()[0])
    assert [report.admitted.request_id for report in scene.reports] == ["r2"]
    assert len(scene.assembler._windows) == 1
    assert scene.lost(what="sequence") == 0


@pytest.mark.slow
def test_memory_is_flat(kit):
    output = kit.Output(4)
    output.tokens = output.logp.argmax(axis=1)
    rows, sampled, end = output.rows(range(4)), output.sampled(range(4)), output.finished()
    scene = kit.Scene(capture="on_risk")

    def traffic(keys: range) -> None:
        for key in keys:
            rows["key"] = sampled["key"] = key
            scene.admit(key)
            scene.assembler.frame(kit.frame(rows, sampled))
            scene.finish(key, end)
        assert len(scene.reports) == len(keys)
        scene.reports.clear()
        gc.collect()

    traffic(range(1, 5_000))
    tracemalloc.start()
    traffic(range(5_000, 6_000))
    before = tracemalloc.get_traced_memory()[0]
    traffic(range(6_000, 9_000))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    traffic(range(9_000, 20_000))
    assert grown < 200_000  # the memory of the last 4096 keys, allocated again under the tracer, is most of it
    assert scene.assembler._windows.capacity == 64


def test_memory_of_a_burst_is_given_back(kit):
    scene = kit.Scene()
    output = kit.Output(1)
    for key in range(1, 2000):
        output.key = key
        scene.admit(key)
        scene.assembler.frame(kit.frame(output.rows([0])))
    assert scene.assembler._windows.capacity == 2048
    scene.assembler.close(0.0)
    assert scene.assembler._windows.capacity == 0
    assert not scene.assembler._live
