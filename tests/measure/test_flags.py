"""What is a flag, from where on, and while the sequence still runs."""

import dataclasses

import numpy as np
import pytest

from corevital.frames.lifecycle import CoreFacts, Finished
from corevital_otel.measure.features import PEAKS, Watch
from corevital_otel.measure.thresholds import Thresholds
from corevital_otel.report import Risk, RiskModel

FLAT, SURE = 0.0, 40.0


def output(kit, kinds: list[float], moving: bool = True, seed: int = 0):
    """Logits of one likeliest token, which moves on or not, as far above all others as given for each step."""
    made = kit.Output(len(kinds), seed=seed, extra=1)
    logits = np.random.default_rng(seed).normal(0, 0.01, made.logp.shape)
    for i, lead in enumerate([*kinds, 1.0]):
        logits[i, (7 * i if moving else 0) % logits.shape[1]] += lead
    made.logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return made


def flags(kit, made, **limits) -> tuple[str, ...]:
    return kit.Scene(thresholds=Thresholds(**limits)).play(made).health.flags


def test_a_long_stretch_of_guessing(kit):
    assert "sustained_high_entropy" in flags(kit, output(kit, [SURE] * 40 + [FLAT] * 64))
    assert flags(kit, output(kit, [SURE] * 40 + [FLAT] * 59)) == ()
    now_and_then = [FLAT, FLAT, SURE] * 100
    assert flags(kit, output(kit, now_and_then)) == ()
    assert "sustained_high_entropy" in flags(kit, output(kit, [FLAT, FLAT, FLAT, SURE] * 100))
    assert "sustained_high_entropy" in flags(kit, output(kit, [FLAT] * 20), high_entropy_tokens=20)


@pytest.mark.parametrize("lead", [FLAT + 1.0, SURE])
def test_the_same_distribution_over_and_over(kit, lead):
    """The endless "!" of broken weights; and a flat one that does not depend on what came before."""
    assert "distribution_collapsed" in flags(kit, output(kit, [lead] * 70, moving=False))
    assert "distribution_collapsed" not in flags(kit, output(kit, [lead] * 60, moving=False))


def test_of_a_first_leg_only_the_logits_can_be_wrong(kit):
    """Its one token is not the client's: no truncation, no alarm, no score, and nothing for a baseline to learn."""
    assessed = []

    class Learning(RiskModel):
        def assess(self, features, health, admitted):
            assessed.append(admitted.role)
            return Risk(score=0.9, level="high")

    watched = Thresholds(alarm=("entropy_max", Watch(PEAKS.index("entropy_max"), 0.1)))
    for role, flags in ((None, ("truncated", "alarm_raised")), ("prefill", ())):
        for nan in (False, True):
            made = output(kit, [FLAT])
            scene = kit.Scene(thresholds=watched, risk=Learning())
            scene.admit(made.key, role=role)
            rows = made.rows([0])
            rows["nan_count"] = int(nan)
            scene.assembler.frame(kit.frame(rows, made.sampled([0])))
            scene.finish(made.key, made.finished("length"))
            (report,) = scene.reports
            expected = ("nan_detected",) if nan else ()
            assert report.health.flags == (*expected, *flags)
            assert (report.risk.level, report.risk.score) == (("high", 0.9) if role is None else ("unknown", None))
            assert report.outcome.reason == "length"
    assert assessed == [None, None]


def test_confident_text_is_not_a_collapse(kit):
    assert flags(kit, output(kit, [SURE] * 600)) == ()


@pytest.mark.parametrize("onset", [0, 5, 31, 32, 50, 95, 100])
@pytest.mark.parametrize("signal", ["entropy_max", "entropy_group_max", "margin_min", "confidence_min"])
def test_an_alarm_says_where_it_began(kit, onset, signal):
    made = output(kit, [SURE] * onset + [FLAT] * 60)
    threshold = {"entropy_max": 4.0, "entropy_group_max": 2.6, "margin_min": -0.5, "confidence_min": -20.0}[signal]
    scene = kit.Scene(thresholds=Thresholds(alarm=(signal, Watch(PEAKS.index(signal), threshold))))
    health = scene.play(made).health
    assert health.alarm_raised
    assert health.alarm_signal == signal
    # a group of sixteen crosses where half of it is flat; before its first sixteenth token there is none
    wanted = max(onset + 7, 15) if "_m" in signal and signal in ("entropy_group_max", "confidence_min") else onset
    assert abs(health.alarm_onset - wanted) <= 2
    calm = kit.Scene(thresholds=Thresholds(alarm=(signal, Watch(PEAKS.index(signal), threshold))))
    quiet = calm.play(output(kit, [SURE] * 100)).health
    assert (quiet.flags, quiet.alarm_onset, quiet.alarm_signal) == ((), None, signal)


def test_an_answer_shorter_than_a_group_is_judged_at_its_end(kit):
    alarm = ("entropy_group_max", Watch(PEAKS.index("entropy_group_max"), 2.0))
    health = kit.Scene(thresholds=Thresholds(alarm=alarm)).play(output(kit, [FLAT] * 5)).health
    assert (health.alarm_raised, health.alarm_onset) == (True, 4)


def test_an_alarm_is_up_while_the_sequence_runs(kit):
    made = output(kit, [SURE] * 40 + [FLAT] * 100)
    scene = kit.Scene(thresholds=Thresholds(alarm=("entropy_max", Watch(0, 4.0))))
    scene.admit()
    seen = []
    for step in made.steps():
        scene.assembler.frame(step)
        scene.turn()
        seen.append(scene.assembler.alarmed_by_model.get("m", 0))
    assert seen[:40] == [0] * 40
    assert 1 in seen[40:140], "while it ran"
    scene.finish(made.key, made.finished())
    assert scene.reports[0].health.alarm_onset == 40
    assert scene.assembler.alarmed_by_model == {}


class Shifted(RiskModel):
    def assess(self, features, health, admitted):
        assert "traffic_shifted" not in health.flags
        return Risk(score=0.1, level="low", basis="baseline", shifted=True)


def test_a_shift_is_a_flag_and_asks_for_no_series(kit):
    report = kit.Scene(risk=Shifted(), capture="on_risk").play(kit.Output(5, extra=1))
    assert report.health.flags == ("traffic_shifted",)
    assert report.health.fault_flags == ()
    assert report.series is None


@pytest.mark.parametrize(("loop_tokens", "found"), [(16, True), (48, False)])
def test_how_long_a_loop_has_to_be_is_a_setting(kit, loop_tokens, found):
    made = kit.Output(40, extra=1)
    made.tokens = np.concatenate([np.arange(10), np.full(31, 7)])
    report = kit.Scene(thresholds=Thresholds(loop_tokens=loop_tokens)).play(made, "length")
    assert report.health.repetition_loop_detected is found


def test_flags_are_named_once(kit):
    health = kit.Scene().play(kit.Output(5, extra=1)).health
    everything = dataclasses.replace(
        health,
        **{
            name: True
            for name in type(health).__dataclass_fields__
            if not name.startswith(("loop_", "alarm_", "template_o", "template_p"))
        },
    )
    assert len(everything.flags) == 8


def bits(kit, wanted: list[float]):
    """Logits whose entropies are these, up to that of the uniform distribution: one token leads all others."""
    made = kit.Output(len(wanted), extra=1)
    vocab = made.logp.shape[1]
    for i, entropy in enumerate([*wanted, 1.0]):
        low, high = 0.0, 60.0
        for _ in range(50):  # the lead of one token over all others, by bisection
            lead = (low + high) / 2
            p = np.exp(np.array([lead, *[0.0] * (vocab - 1)]) - np.log(np.exp(lead) + vocab - 1))
            low, high = (lead, high) if -(p * np.log2(p)).sum() > entropy else (low, lead)
        made.logp[i] = np.roll(np.log(p), 7 * i)
    return made


@pytest.mark.parametrize(
    ("what", "entropies", "found"),
    [
        ("long and calm, with spikes", ([0.5] * 9 + [5.2]) * 60, False),
        ("a calm answer of a small model", [1.0, 4.5, 2.0, 3.0, 4.2, 0.2] * 60, False),
        ("creative, two in three unsure", [4.5, 4.5, 1.5] * 100, False),
        ("salad: four in ten are spelled out", [5.3, 5.3, 5.3, 4.9, 4.9] * 40, True),
        ("salad: from one extreme to the other", [5.32, 4.72] * 60, True),
        ("salad for 64 tokens of a long answer", [0.5] * 200 + [5.1] * 64 + [0.5] * 200, True),
        ("40 unsure tokens", [0.5] * 200 + [5.1] * 40 + [0.5] * 200, False),
        ("too short", [5.2] * 40, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shift", [0, 13])
def test_word_salad(kit, what, entropies, found, shift):
    raised = flags(kit, bits(kit, [0.5] * shift + entropies))
    assert ("sustained_high_entropy" in raised) is found, what


@pytest.mark.parametrize(("low", "high", "found"), [(3.0, 5.32, False), (4.7, 5.32, True)])
def test_salad_needs_no_run(kit, low, high, found):
    """Every second token is sure enough to end the run of high-entropy steps."""
    made = bits(kit, [low, high] * 50)
    report = kit.Scene(thresholds=Thresholds(high_entropy_bits=4.0, high_entropy_tokens=1000)).play(made)
    assert report.health.sustained_high_entropy is found


@pytest.mark.parametrize(
    ("reason", "stop_reason", "expected"),
    [
        ("length", None, ("repetition_loop_detected", "truncated")),
        ("abort", None, ("repetition_loop_detected",)),
        ("stop", None, ("template_detected",)),
        ("stop", "corevital:loop", ("repetition_loop_detected",)),
    ],
)
def test_what_was_asked_for_ends_by_itself(kit, reason, stop_reason, expected):
    """The same sentence twenty times: a fault only where the model did not end it."""
    scene = kit.Scene(capture="on_risk")
    scene.admit()
    made = Finished(reason=reason, token_ids=[*range(100, 110)] * 20, end_ns=1, core=CoreFacts(stop_reason=stop_reason))
    scene.finish(7, made)
    scene.run_out()
    (report,) = scene.reports
    assert report.health.flags == expected
    found = report.health
    where = (found.loop_onset, found.loop_period), (found.template_onset, found.template_period)
    assert where == (((0, 10), (None, None)) if found.repetition_loop_detected else ((None, None), (0, 10)))
    assert report.features.repetition_share == 1.0


def test_a_template_is_quiet(kit):
    tokens = np.tile(np.arange(100, 120), (9, 1))
    tokens[:, [3, 11]] = np.arange(18).reshape(9, 2)
    scene = kit.Scene(capture="on_risk")
    scene.admit()
    scene.finish(7, Finished(reason="stop", token_ids=tokens.ravel().tolist(), end_ns=1))
    scene.run_out()
    health = scene.reports[0].health
    assert (health.flags, health.loud_flags, health.fault_flags) == (("template_detected",), (), ())
    assert (health.template_period, health.template_onset) == (20, 0)
