"""One report a sequence, right or saying that it is incomplete."""

import dataclasses

import numpy as np
import pytest

from corevital.frames.lifecycle import Finished
from corevital_otel.measure.windows import WINDOW


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257])
@pytest.mark.parametrize("extra", [0, 2])
def test_features_of_a_plain_request(kit, n, extra):
    output = kit.Output(n, extra=extra, seed=n)
    scene = kit.Scene()
    report = scene.play(output)
    estimated = report.features.surprisal_estimated
    if extra:  # every token was followed by another step, which sent its log-probability
        assert estimated == 0
        kit.check(report.features, output.features())
    assert estimated <= 1
    assert not report.incomplete
    assert (report.runner, report.stage, report.admission.parent.span_id) == ("v1", "raw", 8)
    assert len(report.series) == n
    assert len(scene.reports) == 1
    assert scene.assembler.running == 0
    assert scene.lost() == 0


def test_series_are_the_tokens_values(kit):
    output = kit.Output(90, extra=1)
    series = kit.Scene().play(output).series
    p = -np.sort(-np.exp(output.logp[:90]), axis=1)
    entropy = -(np.exp(output.logp) * output.logp).sum(axis=1)[:90] / np.log(2)
    np.testing.assert_allclose(series.entropy, entropy, rtol=1e-5)
    np.testing.assert_allclose(series.surprisal, -output.logp[range(90), output.tokens[:90]] / np.log(2), rtol=1e-4)
    np.testing.assert_allclose(series.margin, p[:, 0] - p[:, 1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(series.topk_mass, p[:, :10].sum(axis=1), rtol=1e-5)
    assert series.entropy.dtype == np.float32


@pytest.mark.parametrize("early", [0, 1, 50, 119])
def test_the_end_may_come_before_the_frames(kit, early):
    output = kit.Output(120, extra=1)
    scene = kit.Scene()
    scene.admit()
    for i, step in enumerate(output.steps()):
        if i == early:
            scene.finish(output.key, output.finished())
            assert not scene.reports
        scene.assembler.frame(step)
        scene.turn()
    assert len(scene.reports) == 1
    assert not scene.reports[0].incomplete
    assert scene.reports[0].features.entropy_sum == pytest.approx(output.features().entropy_sum, rel=1e-4)


def test_an_incomplete_sequence_waits_its_time_and_is_marked(kit):
    output = kit.Output(50, extra=1)
    scene = kit.Scene()
    scene.admit()
    for i, step in enumerate(output.steps()):
        if i != 20:
            scene.assembler.frame(step)
    scene.now = 5.0
    scene.finish(output.key, output.finished())
    assert scene.assembler.tick(5.5) == pytest.approx(1.5)
    assert not scene.reports
    assert scene.assembler.tick(7.0) is None
    [report] = scene.reports
    assert report.incomplete
    assert report.features.tokens == 49
    assert np.flatnonzero(np.isnan(report.series.entropy)).tolist() == [20]
    assert scene.lost(what="record", why="missing") == 1


def test_a_later_record_replaces_an_earlier_one(kit):
    """Chunked prefill sends index 0 again and again; a rejected draft's rows are sent again."""
    output, wrong = kit.Output(40, extra=1), kit.Output(40, seed=99, extra=1)
    scene = kit.Scene()
    scene.admit()
    for i, step in enumerate(output.steps()):
        drafts = range(i, min(i + 4, 40))
        scene.assembler.frame(kit.frame(wrong.rows(drafts), wrong.sampled(drafts)))
        scene.assembler.frame(step)
    scene.finish(output.key, output.finished())
    kit.check(scene.reports[0].features, output.features())


def test_a_last_token_outside_the_table_is_waited_for_briefly(kit):
    output = kit.Output(30)
    output.tokens[-1] = output.logp[-1].argmin()
    for late in (True, False):
        scene = kit.Scene()
        scene.admit()
        for step in output.steps():
            scene.assembler.frame(step)
        scene.finish(output.key, output.finished())
        assert not scene.reports
        assert scene.assembler.tick(0.1) == pytest.approx(0.15)
        if late:
            scene.assembler.frame(kit.frame(sampled=output.sampled([29])))
            scene.turn()
            kit.check(scene.reports[0].features, output.features())
        else:
            scene.assembler.tick(0.25)
            assert scene.reports[0].features.surprisal_estimated == 1
            order = np.sort(np.exp(output.logp[-1]))[:20]  # the tail's mean, as 20 of 40 tokens are in the table
            assert scene.reports[0].series.surprisal[-1] == pytest.approx(-np.log2(order.mean()), rel=1e-4)
        assert not scene.reports[0].incomplete


def test_a_last_token_in_the_table_is_exact_at_once(kit):
    output = kit.Output(30)
    output.tokens[-1] = output.logp[-1].argmax()
    scene = kit.Scene()
    scene.admit()
    for step in output.steps():
        scene.assembler.frame(step)
    scene.finish(output.key, output.finished())
    kit.check(scene.reports[0].features, output.features())


def test_penalised_tokens_are_looked_up(kit):
    """The engine half sends NaN where it cannot read a token's log-probability."""
    output = kit.Output(100, extra=1)
    output.tokens = output.logp.argmax(axis=1)
    scene = kit.Scene()
    scene.admit()
    for step in output.steps():
        sampled = step.sampled.copy()
        sampled["logprob"] = np.nan
        scene.assembler.frame(kit.frame(step.rows, sampled))
    scene.finish(output.key, output.finished())
    kit.check(scene.reports[0].features, output.features())


def test_many_rows_of_several_sequences_in_one_frame(kit):
    first, second = kit.Output(300, extra=1), kit.Output(200, seed=5, key=8)
    scene = kit.Scene()
    scene.admit(first.key)
    scene.admit(second.key)
    rows = np.concatenate([first.rows(range(300)), second.rows(range(200))])
    order = np.argsort(rows["index"], kind="stable")  # interleaved
    scene.assembler.frame(kit.frame(rows[order]))
    scene.finish(first.key, first.finished())
    scene.finish(second.key, second.finished())
    scene.run_out()
    assert [report.features.tokens for report in scene.reports] == [300, 200]
    assert not any(report.incomplete for report in scene.reports)


def test_abort_trims_to_what_the_client_got(kit):
    output = kit.Output(40, extra=12)
    report = kit.Scene().play(output, "abort")
    assert (report.outcome.reason, report.incomplete) == ("abort", False)
    kit.check(report.features, output.features())


def test_more_surplus_than_the_window_holds_is_counted(kit):
    output = kit.Output(40, extra=2 * WINDOW)
    report = kit.Scene().play(output, "abort")
    assert report.incomplete
    assert len(report.series) == 40


def test_no_tokens_at_all(kit):
    scene = kit.Scene()
    scene.admit()
    scene.finish(7, Finished(reason="abort", token_ids=(), end_ns=1))
    [report] = scene.reports
    assert (report.features.tokens, report.risk.level, report.risk.score, report.series) == (0, "unknown", None, None)
    assert not report.incomplete


def test_what_was_never_admitted_or_is_over_is_counted(kit):
    output = kit.Output(5)
    output.tokens = output.logp.argmax(axis=1)
    scene = kit.Scene()
    scene.assembler.frame(output.steps()[0])
    scene.finish(7, output.finished())
    assert scene.lost(what="record", why="unknown_sequence") == 1
    assert scene.lost(what="finish", why="unknown_sequence") == 1
    scene.play(output)
    scene.finish(7, output.finished())
    assert scene.lost(what="finish", why="already_reported") == 1
    scene.assembler.frame(kit.frame(output.rows([4])))  # surplus of a complete report is not a loss
    assert scene.lost(what="record") == 1
    assert len(scene.reports) == 1


def test_records_for_a_report_that_missed_them_are_late(kit):
    output = kit.Output(5)
    scene = kit.Scene()
    scene.admit()
    scene.finish(7, output.finished())
    scene.finish(7, output.finished())
    scene.run_out()
    assert scene.reports[0].incomplete
    scene.assembler.frame(output.steps()[0])
    assert scene.lost(what="record", why="late") == 1
    assert scene.lost(what="finish", why="duplicate") == 1


def test_close_reports_what_is_open(kit):
    scene = kit.Scene(wall_ns=lambda: 123)
    running, ended = kit.Output(40), kit.Output(10, key=8)
    scene.admit(7)
    scene.admit(8)
    scene.admit(9)
    for step in running.steps():
        scene.assembler.frame(step)
    scene.finish(8, ended.finished())
    assert scene.assembler.running == 3
    scene.assembler.close(0.1)
    by_id = {report.admitted.request_id: report for report in scene.reports}
    assert by_id.keys() == {"r7", "r8", "r9"}
    assert (by_id["r7"].outcome.reason, by_id["r7"].outcome.end_ns, by_id["r7"].incomplete) == ("abort", 123, True)
    assert (by_id["r7"].features.tokens, len(by_id["r7"].series)) == (40, 40)
    assert (by_id["r8"].outcome.reason, by_id["r8"].incomplete) == ("stop", True)
    assert scene.assembler.running == 0
    assert scene.assembler.tick(100.0) is None


def test_a_loop_shows_while_it_runs_and_in_the_report(kit):
    output = kit.Output(200)
    output.tokens[60:] = np.resize([1, 2, 3, 4, 5], 140)
    output.tokens[-1] = output.logp[-1].argmax()
    scene = kit.Scene(capture="on_risk")
    scene.admit()
    assert scene.assembler.looping == 0
    for step in output.steps():
        scene.assembler.frame(step)
    assert scene.assembler.looping == 1
    scene.finish(7, output.finished("length"))
    scene.run_out()
    [report] = scene.reports
    assert scene.assembler.looping == 0
    assert (report.health.repetition_loop_detected, report.health.loop_period) == (True, 5)
    assert 55 <= report.health.loop_onset <= 60
    assert len(report.series) == 200  # because of a flag


def test_a_loop_is_found_from_the_clients_tokens_alone(kit):
    scene = kit.Scene()
    scene.admit()
    scene.finish(7, Finished(reason="length", token_ids=[9] * 100, end_ns=1))
    scene.run_out()
    assert scene.reports[0].health.flags == ("repetition_loop_detected", "truncated")


def test_bad_rows_raise_flags_and_do_not_change_the_means(kit):
    output = kit.Output(100, extra=1)
    rows = output.rows(range(100))
    for i in (10, 90):  # one folded, one still in the window at the end
        for name in ("entropy", "margin", "topk_mass", "topk_logprobs", "logsumexp"):
            rows[name][i] = np.nan
    rows["nan_count"][10] = 3
    rows["posinf_count"][90] = 1
    scene = kit.Scene(capture="on_risk")
    scene.admit()
    for i in range(100):
        scene.assembler.frame(kit.frame(rows[i : i + 1], output.sampled([i])))
    scene.finish(7, output.finished())
    [report] = scene.reports
    assert report.health.flags == ("nan_detected", "inf_detected")
    assert (report.features.tokens, report.incomplete) == (100, False)
    wanted = output.features(set(range(100)) - {10, 90})
    kit.check(dataclasses.replace(report.features, tokens=98), wanted)


def test_tokens_other_than_the_clients_are_counted(kit):
    output = kit.Output(100, extra=1)
    scene = kit.Scene()
    scene.admit()
    for step in output.steps():
        scene.assembler.frame(step)
    output.tokens[3] += 1
    scene.finish(7, output.finished())
    scene.run_out()
    assert scene.reports[0].incomplete
    assert scene.lost(what="sequence", why="other_tokens") == 1


@pytest.mark.parametrize(
    ("server", "own", "reason", "kept"),
    [
        ("summary", None, "length", False),
        ("full", None, "stop", True),
        ("on_risk", None, "stop", False),
        ("on_risk", None, "length", True),
        ("summary", "full", "stop", True),
        ("full", "summary", "length", False),
    ],
)
def test_capture(kit, server, own, reason, kept):
    scene = kit.Scene(capture=server)
    output = kit.Output(40)
    scene.admit(capture=own)
    scene.assembler.frame(kit.frame(output.rows(range(40)), output.sampled(range(40))))
    scene.finish(7, output.finished(reason))
    [report] = scene.reports
    assert (report.series is not None) == kept
    assert report.capture == (own or server)


def test_a_series_is_cut_at_its_cap(kit):
    scene = kit.Scene(max_series_tokens=50)
    report = scene.play(kit.Output(100, extra=1))
    assert (len(report.series), report.features.tokens, report.incomplete) == (50, 100, False)
    assert not np.isnan(report.series.entropy).any()
    assert scene.lost(what="series", why="too_long") == 50


def test_an_error_in_the_risk_model_or_the_receiver_loses_no_other_report(kit, monkeypatch):
    class Broken:
        def assess(self, features, health, admitted):
            raise ZeroDivisionError

    monkeypatch.setenv("COREVITAL_RAISE", "0")
    scene = kit.Scene(risk=Broken())
    assert scene.play(kit.Output(5)).risk.level == "unknown"
    assert scene.lost(what="risk") == 1
    seen = []

    def receive(report):
        seen.append(report)
        raise ZeroDivisionError

    scene.assembler._on_report = receive
    for key in (1, 2, 3):
        scene.admit(key)
    scene.assembler.close(0.0)
    assert len(seen) == 3
    assert scene.lost(what="report") == 3


def test_a_record_of_another_token_than_the_clients_is_not_its_surprisal(kit):
    output = kit.Output(30, extra=1)
    sampled = output.sampled([29])
    output.tokens[29] = next(t for t in output.logp[29].argsort()[::-1][:20] if t != output.tokens[29])
    scene = kit.Scene()
    scene.admit()
    for step in output.steps()[:30]:
        scene.assembler.frame(step)
    scene.assembler.frame(kit.frame(sampled=sampled))
    scene.finish(7, output.finished())
    kit.check(scene.reports[0].features, output.features())


def test_a_key_admitted_twice_is_one_sequence(kit):
    output = kit.Output(10, extra=1)
    scene = kit.Scene()
    scene.admit()
    scene.assembler.frame(output.steps()[0])
    scene.admit()
    for step in output.steps()[1:]:
        scene.assembler.frame(step)
    scene.finish(7, output.finished())
    kit.check(scene.reports[0].features, output.features())
    assert scene.lost(what="sequence", why="duplicate_key") == 1


def test_once_the_end_is_known_rows_need_no_sampled_records(kit):
    output = kit.Output(200)
    output.tokens = output.logp.argmax(axis=1)
    scene = kit.Scene()
    scene.admit()
    scene.finish(7, output.finished())
    for i in range(200):
        scene.assembler.frame(kit.frame(output.rows([i])))
    scene.turn()
    kit.check(scene.reports[0].features, output.features())
    assert not scene.reports[0].incomplete


def test_tokens_are_counted_while_a_sequence_runs(kit):
    output = kit.Output(200, extra=1)
    scene = kit.Scene()
    scene.admit()
    counted = []
    for step in output.steps():
        scene.assembler.frame(step)
        counted.append(scene.assembler.fresh_tokens().get("m", 0))
    assert sum(counted[:100]) >= 32
    scene.finish(7, output.finished())
    [report] = scene.reports
    assert report.counted == sum(counted)
    assert (report.features.tokens, scene.assembler.fresh_tokens()) == (200, {})
    scene.admit(8)
    scene.assembler.frame(kit.frame(kit.Output(200, key=8).rows(range(200))))
    scene.assembler.forget(8)
    assert scene.assembler.fresh_tokens().get("m", 0) == 0
