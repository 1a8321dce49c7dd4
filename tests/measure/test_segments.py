"""Tokens that a grammar forces, and the parts of an output: reasoning, answer, calls of tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import TypeAdapter
from tests.measure.conftest import VOCAB, Output

from corevital.frames import events
from corevital.frames.lifecycle import MAX_SEGMENTS, Admitted, Finished, Segment
from corevital_otel.measure import features
from corevital_otel.measure import segments as segments_module
from corevital_otel.measure.features import PEAKS, Watch, of_series
from corevital_otel.measure.thresholds import Thresholds
from corevital_otel.report import Features, RequestReport
from corevital_otel.risk.alarm import running_maximum

KINDS = {"r": "reasoning", "t": "tool_call", "|": "mark"}


@dataclass
class Masked(Output):
    """An output some of whose tokens were the only ones allowed."""

    forced: tuple[int, ...] = field(default=())

    def rows(self, indices: Iterable[int]) -> np.ndarray:
        table = super().rows(indices)
        for row in table:
            if row["index"] in self.forced:
                row["entropy"], row["margin"], row["topk_mass"], row["neginf_count"] = 0.0, 1.0, 1.0, VOCAB - 1
                row["topk_ids"][0] = self.tokens[row["index"]]
                row["topk_logprobs"] = [0.0] + [-np.inf] * 19
        return table

    def sampled(self, indices: Iterable[int]) -> np.ndarray:
        table = super().sampled(indices)
        table["logprob"][np.isin(table["index"], self.forced)] = 0.0
        return table


@pytest.mark.parametrize("forced", [(0,), (98,), (0, 1, 2, 3, 30, 31, 32, 33, 60), tuple(range(0, 100, 2))])
def test_forced_tokens_are_observed_and_are_in_no_mean_or_extreme(kit, forced):
    output = Masked(100, extra=1, forced=forced)
    report = kit.Scene().play(output)
    assert not report.incomplete
    chosen = set(range(100)) - set(forced)
    kit.check(report.features, replace(output.features(chosen, forced), tokens=100, forced=len(forced)))
    series = report.series
    assert not series.entropy[list(forced)].any()
    assert not series.surprisal[list(forced)].any()
    assert (series.margin[list(forced)] == 1).all()
    assert np.isfinite(series.entropy).all()
    assert series.entropy.sum() == pytest.approx(report.features.entropy_sum, rel=1e-4)


GROUP_ALARM = Thresholds(alarm=("entropy_group_max", Watch(PEAKS.index("entropy_group_max"), 3.0)))


@pytest.mark.parametrize(
    ("tokens", "free"),
    [(200, range(15, 200, 16)), (200, (3, 190)), (70, (60, 65)), (15, (14,)), (3, (1,)), (64, range(20, 40))],
)
def test_a_group_of_forced_tokens_is_not_as_unsure_as_its_one_free_token(kit, tokens, free):
    output = Masked(tokens, extra=1, forced=tuple(sorted(set(range(tokens + 1)) - set(free))))
    output.logp[list(free)] = -np.log(VOCAB)  # 5.3 bits
    report = kit.Scene(thresholds=GROUP_ALARM).play(output)
    zeroed = [np.log2(VOCAB) if i in free else 0.0 for i in range(tokens)]
    size = min(16, tokens)
    highest = max(np.mean(zeroed[i : i + size]) for i in range(tokens - size + 1))
    stored = of_series(report.series)
    running = running_maximum(report.series, "entropy_group_max")
    assert report.features.entropy_group_max == pytest.approx(highest, rel=1e-5)
    assert stored.entropy_group_max == pytest.approx(highest, rel=1e-5)
    assert running[-1] == pytest.approx(highest, rel=1e-5)
    assert stored.entropy_rebound == (pytest.approx(report.features.entropy_rebound, rel=1e-5) if size == 16 else None)
    assert report.health.alarm_raised == (len(free) == 20), "only twenty free tokens in a row are unsure"
    assert report.health.alarm_onset == (int(np.argmax(running > 3.0)) if len(free) == 20 else None)


def test_the_confidence_of_a_group_of_forced_tokens_is_not_that_of_its_one_free_token(kit):
    alarm = ("confidence_min", Watch(PEAKS.index("confidence_min"), -9.0))
    for tokens in (200, 15):
        output = Masked(tokens, extra=1, forced=tuple(i for i in range(tokens + 1) if i % 14))
        output.logp[:] = -np.log(VOCAB)
        report = kit.Scene(thresholds=Thresholds(alarm=alarm)).play(output)
        assert report.features.confidence_mean == pytest.approx(np.log(VOCAB), rel=1e-5)
        assert report.features.confidence_min is None
        assert not report.health.alarm_raised
        output.forced = ()
        report = kit.Scene(thresholds=Thresholds(alarm=alarm)).play(output)
        assert report.features.confidence_min == pytest.approx(np.log(VOCAB), rel=1e-5)
        assert report.health.alarm_raised


def test_an_output_that_is_all_forced_has_no_score(kit):
    report = kit.Scene().play(Masked(40, extra=1, forced=tuple(range(41))))
    assert (report.features.tokens, report.features.forced, report.features.entropy_mean) == (40, 40, None)
    assert (report.risk.score, report.risk.level) == (None, "unknown")
    assert report.health.flags == (), "forty times the same certainty is not a collapse"


def test_a_certain_token_that_was_one_of_two_is_not_forced(kit):
    output = Masked(3, forced=(0, 1, 2))
    rows = output.rows(range(3))
    rows["neginf_count"] = VOCAB - 2
    scene = kit.Scene()
    scene.admit()
    scene.assembler.frame(kit.frame(rows, output.sampled(range(3))))
    scene.finish(output.key, output.finished())
    assert (scene.reports[0].features.forced, scene.reports[0].features.entropy_mean) == (0, 0.0)


def spans(layout: str) -> tuple[Segment, ...]:
    """The segments of an output with a letter for each token: r, t, | as in KINDS, a for the answer."""
    found, at = [], 0
    while at < len(layout):
        end = next((i for i in range(at, len(layout)) if layout[i] != layout[at]), len(layout))
        if layout[at] != "a":
            found.append(Segment(KINDS[layout[at]], at, end))
        at = end
    return tuple(found)


def played(kit, output: Output, segments: tuple[Segment, ...], segmented: bool = True, **options) -> RequestReport:
    scene = kit.Scene(**options)
    admitted = Admitted(request_id="r", engine_id="e", sequence=0, operation="chat", model="m", arrival_ns=0,
                        prompt_tokens=3, segmented=segmented)  # fmt: skip
    scene.assembler.admit(output.key, admitted)
    for step in output.steps():
        scene.assembler.frame(step)
    scene.assembler.finish(output.key, replace(output.finished(), segments=segments))
    scene.run_out()
    return scene.reports[0]


def ended_together(kit, cases: list[tuple[Output, tuple[Segment, ...]]], **options) -> dict[int, RequestReport]:
    """The reports of outputs that all end in one turn, by their keys."""
    scene = kit.Scene(**options)
    for output, segments in cases:
        admitted = Admitted(request_id="r", engine_id=str(output.key), sequence=0, operation="chat", model="m",
                            arrival_ns=0, prompt_tokens=3, segmented=bool(segments))  # fmt: skip
        scene.assembler.admit(output.key, admitted)
        for step in output.steps():
            scene.assembler.frame(step)
    for output, segments in cases:
        scene.assembler.finish(output.key, replace(output.finished(), segments=segments))
    scene.run_out()
    return {int(report.admitted.engine_id): report for report in scene.reports}


def part_of(output: Output, at: list[int]) -> Features:
    """What the definitions say of these tokens as if they were a whole output."""
    part = Output(len(at), key=output.key)
    part.logp, part.tokens = output.logp[at], output.tokens[at]
    return replace(part.features(), frozen_run=0)


@pytest.mark.parametrize("capture", ["summary", "on_risk", "full"])
@pytest.mark.parametrize(
    ("layout", "assessed"),
    [
        ("|" + "r" * 70 + "|" + "a" * 90, "answer"),
        ("r" * 20 + "|" + "a" * 5, "answer"),
        ("|" + "r" * 40 + "|" + "a" * 3 + "|" + "t" * 50 + "|a", "tool_call"),
        ("a" * 60 + "|" + "t" * 50 + "|", "answer"),
        ("|" + "r" * 10 + "|" + "a" * 10 + "|" + "r" * 10 + "|" + "a" * 40, "answer"),
    ],
)
def test_the_assessed_part_is_measured_like_a_whole_output(kit, layout, assessed, capture):
    output = Output(len(layout), seed=3, extra=1)
    report = played(kit, output, spans(layout), capture=capture)
    found = report.segments
    assert found is not None
    for letter, name in (("r", "reasoning"), ("a", "answer"), ("t", "tool_call")):
        at = [i for i, kind in enumerate(layout) if kind == letter]
        part, wanted = getattr(found, name), part_of(output, at)
        if not at:
            assert part is None
            continue
        assert part.tokens == len(at)
        assert part.entropy_mean == pytest.approx(wanted.entropy_mean, rel=1e-4)
        assert part.surprisal_mean == pytest.approx(wanted.surprisal_mean, rel=1e-4)
        if name == assessed:
            kit.check(found.assessed.features, wanted)
    assert found.assessed.segment == assessed
    kit.check(report.features, replace(output.features(), frozen_run=report.features.frozen_run))


@pytest.mark.parametrize("together", [8192, 200])
def test_outputs_that_end_together_have_the_parts_that_each_has_alone(kit, monkeypatch, together):
    monkeypatch.setattr(segments_module, "_TOGETHER", together)
    layouts = [
        "|" + "r" * 70 + "|" + "a" * 90,
        "a" * 60 + "|" + "t" * 130,
        "r" * 20,
        "a" * 33,
        "r" * 20 + "|" + "a" * 5,
        "r" * 4 + "a" * 250,
    ]
    cases = [(Output(len(one), seed=i, extra=1, key=i + 1), spans(one)) for i, one in enumerate(layouts)]
    forced = Masked(120, seed=9, extra=1, key=9, forced=tuple(range(30, 80)))
    cases.append((forced, spans("r" * 20 + "a" * 100)))
    limits = Thresholds(alarm=("entropy_group_max", Watch(PEAKS.index("entropy_group_max"), 3.5)))
    reports = ended_together(kit, cases, thresholds=limits)
    assert len(reports) == len(cases)
    for case in cases:
        report, alone = reports[case[0].key], ended_together(kit, [case], thresholds=limits)[case[0].key]
        found, wanted = report.segments, alone.segments
        assert (found is None) == (wanted is None) == (not case[1])
        assert report.health == alone.health
        assert report.risk.score == pytest.approx(alone.risk.score, rel=1e-9)
        if wanted is not None:
            assert (found.reasoning, found.answer, found.tool_call) == (
                wanted.reasoning,
                wanted.answer,
                wanted.tool_call,
            )
            assert (found.assessed is None) == (wanted.assessed is None)
        if wanted is not None and wanted.assessed is not None:
            assert (found.assessed.segment, found.assessed.alarm_onset) == (
                wanted.assessed.segment,
                wanted.assessed.alarm_onset,
            )
            for name, value in dataclasses.asdict(wanted.assessed.features).items():
                expected = pytest.approx(value, rel=1e-9, abs=1e-9) if isinstance(value, float) else value
                assert getattr(found.assessed.features, name) == expected, name


def test_the_parts_of_many_outputs_cost_few_folds(kit, monkeypatch):
    folds = []

    def fold(state, *args):
        folds.append(len(state))
        return features.fold(state, *args)

    monkeypatch.setattr(segments_module, "features", SimpleNamespace(**{**vars(features), "fold": fold}))
    layout = "r" * 30 + "|" + "a" * 60
    cases = [(Output(len(layout), seed=i, extra=1, key=i + 1), spans(layout)) for i in range(40)]
    reports = ended_together(kit, cases, capture="summary")
    assert {report.segments.assessed.segment for report in reports.values()} == {"answer"}
    assert folds == [40], "reasoning is folded, or each answer by itself"


def test_the_risk_is_that_of_the_answer(kit):
    layout = "|" + "r" * 60 + "|" + "a" * 50
    unsure, sure = Output(112, seed=1), Output(112, seed=1)
    sure.logp[62:] = np.log(np.full(VOCAB, 1e-6))
    sure.logp[62:, 0] = np.log(1 - (VOCAB - 1) * 1e-6)
    sure.tokens[62:] = 0
    risks = [played(kit, output, spans(layout)).risk.score for output in (unsure, sure)]
    whole = kit.Scene().play(sure).risk.score
    assert risks[1] < risks[0]
    assert risks[1] < whole, "the reasoning's uncertainty is not the answer's"


def test_an_output_that_is_all_reasoning_is_assessed_whole(kit):
    output = Output(50, extra=1)
    report = played(kit, output, spans("|" + "r" * 49))
    assert report.segments.assessed is report.segments.answer is None
    assert report.risk == kit.Scene().play(output).risk


def test_forced_tokens_of_a_part_count_as_its_tokens_alone(kit):
    layout = "|" + "r" * 20 + "|" + "a" * 40
    output = Masked(len(layout), extra=1, forced=tuple(range(30, 50)))
    found = played(kit, output, spans(layout)).segments
    assert (found.answer.tokens, found.assessed.features.tokens, found.assessed.features.forced) == (40, 40, 20)
    chosen = [*range(22, 30), *range(50, 62)]
    wanted = part_of(output, chosen)
    assert found.answer.entropy_mean == pytest.approx(wanted.entropy_mean, rel=1e-4)
    assert found.answer.surprisal_mean == pytest.approx(wanted.surprisal_mean, rel=1e-4)
    assert found.assessed.features.entropy_mean == pytest.approx(wanted.entropy_mean, rel=1e-4)


def test_the_alarm_is_that_of_the_answer(kit):
    layout = "|" + "r" * 60 + "|" + "a" * 50
    output = Output(112, seed=1)
    output.logp[:] = np.log(np.full(VOCAB, 1e-6))
    output.logp[:, 0] = np.log(1 - (VOCAB - 1) * 1e-6)
    output.tokens[:] = 0
    output.logp[10] = -np.log(VOCAB)  # in the reasoning
    limits = Thresholds(alarm=("entropy_max", Watch(0, 3.0)))
    assert kit.Scene(thresholds=limits).play(output).health.alarm_onset == 10
    assert not played(kit, output, spans(layout), thresholds=limits).health.alarm_raised
    output.logp[80] = -np.log(VOCAB)
    assert played(kit, output, spans(layout), thresholds=limits).health.alarm_onset == 80


@pytest.mark.parametrize(
    "segments",
    [
        (Segment("reasoning", -5, 10), Segment("reasoning", 40, 10**12), Segment("mark", 7, 3)),
        (
            Segment("reasoning", 0, 10),
            Segment("tool_call", 5, 10),
            Segment("poem", 3, 50),
            Segment("reasoning", 40, 60),
        ),
    ],
)
def test_segments_that_cannot_be_are_cut_to_the_output(kit, segments):
    found = played(kit, Output(60), segments).segments
    assert (found.reasoning.tokens, found.answer.tokens, found.tool_call) == (30, 30, None)


def test_parts_need_values_and_so_an_admission_that_announces_them(kit):
    report = played(kit, Output(60), spans("r" * 30 + "a" * 30), segmented=False)
    assert report.segments is None
    assert not report.incomplete


def test_a_long_output_has_the_values_of_its_first_tokens(kit):
    report = played(kit, Output(160), spans("r" * 40 + "a" * 120), max_series_tokens=96)
    wanted = part_of(Output(160), [*range(40, 96)])
    assert report.segments.answer.tokens == 120
    assert report.segments.answer.entropy_mean == pytest.approx(wanted.entropy_mean, rel=1e-4)
    assert report.segments.assessed.features.tokens == 56, "totals of 56 tokens are not those of 120"
    assert report.segments.assessed.features.entropy_sum == pytest.approx(wanted.entropy_sum, rel=1e-4)
    assert len(report.series) == 96


@pytest.mark.parametrize(
    ("layout", "forced"), [("r" * 100 + "a" * 60, ()), ("r" * 20 + "a" * 40, range(20, 61)), ("t" * 40, range(40))]
)
def test_an_output_whose_answer_has_no_values_is_assessed_whole(kit, layout, forced):
    output = Masked(len(layout), extra=1, forced=tuple(forced))
    report = played(kit, output, spans(layout), max_series_tokens=96)
    part = report.segments.tool_call or report.segments.answer
    assert (part.tokens, part.entropy_mean, part.surprisal_mean) == (layout.count(layout[-1]), None, None)
    assert report.segments.assessed is None
    whole = kit.Scene().play(output)
    assert report.risk == whole.risk
    assert (report.risk.score is None) == (layout[0] == "t"), "of the reasoning, where there is one"


def test_parts_are_bounded_in_number():
    many = tuple(Segment("mark", i, i + 1) for i in range(1000))
    kept = Finished(reason="stop", token_ids=(), end_ns=1, segments=many).bounded(10)
    assert kept.segments == many[:MAX_SEGMENTS]


def test_parts_cross_to_a_hub():
    parts = (Segment("mark", 0, 1), Segment("reasoning", 1, 5))
    ended = Finished(reason="stop", token_ids=(1, 2), end_ns=1, segments=parts)
    message, _ = events.encode(events.CoreInfo(engine="e"), [events.Event("finish", 7, ended)])
    body = events.read_object(message)
    assert body is not None
    about = body["events"][0][2]
    read = TypeAdapter(Finished).validate_python({**about, "token_ids": ()})
    assert read.segments == parts
    plain = Finished(reason="stop", token_ids=(), end_ns=1)
    assert b"segments" not in events.encode(events.CoreInfo(engine="e"), [events.Event("finish", 7, plain)])[0]
