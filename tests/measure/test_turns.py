"""What is put off to the end of a turn, or folded together with others, comes out as if it were not."""

import dataclasses

import numpy as np

from corevital_otel.measure.windows import WINDOW


def test_reports_leave_at_the_end_of_a_turn_or_when_many_are_ready(kit):
    scene = kit.Scene()
    outputs = [kit.Output(5, key=key, extra=1) for key in range(1, 101)]
    for output in outputs:
        scene.admit(output.key)
    for i in range(6):
        scene.assembler.frame(kit.frame(np.concatenate([output.rows([i]) for output in outputs])))
    for output in outputs:
        scene.assembler.finish(output.key, dataclasses.replace(output.finished(), token_ids=output.logp[:5].argmax(1)))
        assert len(scene.reports) + 64 > output.key  # what is put aside is bounded
    assert scene.assembler.running == 100 - len(scene.reports)
    scene.turn()
    assert sorted(report.admitted.request_id for report in scene.reports) == sorted(f"r{o.key}" for o in outputs)
    assert not any(report.incomplete for report in scene.reports)


def test_rows_the_client_gets_no_tokens_of_do_not_push_out_those_it_got(kit):
    """A long surplus in the turn of the end, before the report is made."""
    output = kit.Output(40, extra=3 * WINDOW)
    scene = kit.Scene()
    scene.admit()
    scene.assembler.finish(7, output.finished())
    for step in output.steps():
        scene.assembler.frame(step)
    scene.turn()
    assert not scene.reports[0].incomplete
    kit.check(scene.reports[0].features, output.features())


def test_the_last_chunk_of_indices_stays_open_while_others_are_folded(kit):
    """One sequence's fold folds others too; each of its last 32 records can still be replaced."""
    outputs = [kit.Output(150 + i, key=i + 1, seed=i, extra=1) for i in range(12)]
    scene = kit.Scene()
    for output in outputs:
        scene.admit(output.key)
    for at in range(162):  # sequence i is i tokens ahead of the first
        now = [(o, at - 11 + i) for i, o in enumerate(outputs) if 0 <= at - 11 + i <= o.n]
        scene.assembler.frame(kit.frame(np.concatenate([o.rows([i]) for o, i in now])))
        back = [(o, i - 31) for o, i in now if i >= 31]
        if back:
            scene.assembler.frame(kit.frame(sampled=np.concatenate([o.sampled([i]) for o, i in back])))
    for output in outputs:
        scene.assembler.frame(kit.frame(sampled=output.sampled(range(output.n - 31, output.n))))
        scene.finish(output.key, output.finished())
    assert scene.lost() == 0
    for output, report in zip(outputs, scene.reports, strict=True):
        kit.check(report.features, output.features())
