"""What is a flag, from where on, and while the sequence still runs."""

import dataclasses

import numpy as np
import pytest

from corevital_otel.features import PEAKS, Watch
from corevital_otel.report import Risk
from corevital_otel.risk.model import RiskModel
from corevital_otel.thresholds import Thresholds

FLAT, SURE = 0.0, 40.0


def output(kit, kinds: list[float], moving: bool = True, seed: int = 0):
    """Logits of one likeliest token, which moves on or not, as far above all others as said for each step."""
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
    assert flags(kit, output(kit, [SURE] * 40 + [FLAT] * 63)) == ()
    now_and_then = [FLAT, FLAT, SURE] * 100
    assert flags(kit, output(kit, now_and_then)) == ()
    assert "sustained_high_entropy" in flags(kit, output(kit, [FLAT, FLAT, FLAT, SURE] * 100))
    assert "sustained_high_entropy" in flags(kit, output(kit, [FLAT] * 20), high_entropy_tokens=20)


@pytest.mark.parametrize("lead", [FLAT + 1.0, SURE])
def test_the_same_distribution_over_and_over(kit, lead):
    """The endless "!" of broken weights; and a flat one that does not depend on what came before."""
    assert "distribution_collapsed" in flags(kit, output(kit, [lead] * 70, moving=False))
    assert "distribution_collapsed" not in flags(kit, output(kit, [lead] * 60, moving=False))


def test_confident_text_is_no_collapse(kit):
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
    assert report.health.faults == ()
    assert report.series is None


@pytest.mark.parametrize(("loop_tokens", "found"), [(16, True), (48, False)])
def test_how_long_a_loop_has_to_be_is_a_setting(kit, loop_tokens, found):
    made = kit.Output(40, extra=1)
    made.tokens = np.concatenate([np.arange(10), np.full(31, 7)])
    assert ("repetition_loop_detected" in flags(kit, made, loop_tokens=loop_tokens)) is found


def test_flags_are_named_once(kit):
    health = kit.Scene().play(kit.Output(5, extra=1)).health
    everything = dataclasses.replace(
        health, **{name: True for name in type(health).__dataclass_fields__ if not name.startswith(("loop_", "alarm_"))}
    )
    assert len(everything.flags) == 7
