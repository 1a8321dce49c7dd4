"""Rows of rejected drafts are taken back; records of one worker come in the order they were sent in."""

import numpy as np
import pytest


@pytest.fixture
def wrong(kit):
    """Another output's rows and tokens under the same key."""
    return kit.Output(200, seed=99, extra=8)


def test_drafts_that_were_rejected_leave_no_trace(kit, wrong):
    output = kit.Output(200, extra=1)
    scene = kit.Scene()
    scene.admit()
    for i in range(200):
        drafts = range(i + 1, i + 5)
        scene.assembler.frame(kit.frame(np.concatenate([output.rows([i]), wrong.rows(drafts)])))
        scene.assembler.frame(kit.frame(sampled=np.concatenate([output.sampled([i]), wrong.rejected(drafts)])))
    scene.finish(7, output.finished())
    kit.check(scene.reports[0].features, output.features())
    entropy = -(np.exp(output.logp) * output.logp).sum(axis=1)[:200] / np.log(2)
    np.testing.assert_allclose(scene.reports[0].series.entropy, entropy, rtol=1e-5)
    assert not scene.reports[0].incomplete
    assert scene.lost() == 0


@pytest.mark.parametrize("n", [1, 30, 90])
def test_a_sequence_whose_last_row_was_taken_back_waits_for_the_real_one(kit, wrong, n):
    output = kit.Output(n, extra=1)
    for comes in (True, False):
        scene = kit.Scene()
        scene.admit()
        for step in output.steps()[: n - 1]:
            scene.assembler.frame(step)
        scene.assembler.frame(kit.frame(wrong.rows([n - 1]), output.sampled([n - 2] if n > 1 else [])))
        scene.assembler.frame(kit.frame(sampled=wrong.rejected([n - 1])))
        scene.finish(7, output.finished())
        assert not scene.reports
        assert scene.assembler.tick(0.5) == pytest.approx(1.5)
        if comes:
            scene.assembler.frame(kit.frame(output.rows([n - 1])))
            scene.assembler.frame(kit.frame(sampled=output.sampled([n - 1])))
            scene.turn()
            kit.check(scene.reports[0].features, output.features())
            assert not scene.reports[0].incomplete
        else:
            scene.run_out()
            assert scene.reports[0].incomplete
            assert scene.reports[0].features.tokens == n - 1
        assert len(scene.reports) == 1


def test_a_row_taken_back_after_the_end_is_waited_for_in_full(kit, wrong):
    """All rows seem to be there and only a log-probability is to come; then the last row turns out to be a draft's."""
    output = kit.Output(30)
    output.tokens[-1] = wrong.logp[29].argmin()
    scene = kit.Scene()
    scene.admit()
    for step in output.steps()[:29]:
        scene.assembler.frame(step)
    scene.assembler.frame(kit.frame(wrong.rows([29]), output.sampled([28])))
    scene.finish(7, output.finished())
    assert scene.assembler.tick(0.1) == pytest.approx(0.15)
    scene.assembler.frame(kit.frame(sampled=wrong.rejected([29])))
    assert scene.assembler.tick(0.3) == pytest.approx(1.7)
    assert not scene.reports
    scene.assembler.frame(kit.frame(output.rows([29])))
    scene.assembler.frame(kit.frame(sampled=output.sampled([29])))
    scene.turn()
    kit.check(scene.reports[0].features, output.features())


def test_a_row_sent_after_the_rejection_stays(kit, wrong):
    output = kit.Output(40, extra=1)
    scene = kit.Scene()
    scene.admit()
    for i in range(40):
        scene.assembler.frame(kit.frame(wrong.rows([i])))
        scene.assembler.frame(kit.frame(sampled=wrong.rejected([i])))
        scene.assembler.frame(kit.frame(output.rows([i])))
        scene.assembler.frame(kit.frame(sampled=output.sampled([i])))
    scene.finish(7, output.finished())
    kit.check(scene.reports[0].features, output.features())


def test_a_rejection_of_what_never_came_is_nothing(kit):
    output = kit.Output(100, extra=1)
    scene = kit.Scene()
    scene.admit()
    for i, step in enumerate(output.steps()):
        scene.assembler.frame(step)
        scene.assembler.frame(kit.frame(sampled=output.rejected([min(i + 1, 100)])))
    scene.finish(7, output.finished())
    kit.check(scene.reports[0].features, output.features())
    assert not scene.reports[0].incomplete
    assert scene.lost() == 0
