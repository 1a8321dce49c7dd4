"""The benchmark on a real model, without the model: its questions, and the scores of a recorded part of its answers."""

from __future__ import annotations

import numpy as np
import pytest
from integration.bench.real import methods
from integration.bench.real.ask import answers, jobs
from integration.bench.real.rows import Rows, recorded
from integration.bench.real.tasks import KINDS, questions, right
from tests.harness.processes import ROOT

from corevital_otel.calibration.fitting import fit
from corevital_otel.risk.directions import DIRECTIONS


@pytest.fixture(scope="module")
def rows() -> Rows:
    return recorded(ROOT / "integration/bench/real/recorded.csv")


def of(rows: Rows, *forms: str) -> Rows:
    return rows.take(np.isin(rows["form"], forms))


def test_there_are_enough_questions_and_each_has_a_key() -> None:
    asked = jobs()
    assert len({job.key for job in asked}) == len(asked)
    assert sum(job.form == "long" for job in asked) >= 400
    assert sum(job.form != "long" for job in asked) >= 3000
    assert len(KINDS) >= 12
    assert [job.key for job in jobs()] == [job.key for job in asked], "the same order in every run"


def test_no_question_is_among_its_own_examples_and_every_gold_answer_is_right() -> None:
    for question in questions():
        assert right(question.check, question.gold, question.gold.split("|")[0]), question
        assert not right(question.check, question.gold, "I do not know"), question
        if question.form == "fewshot":
            *_, asked = question.prompt.removesuffix("\nA:").splitlines()
            assert sum(line.startswith(asked) for line in question.prompt.splitlines()) == 1, question


@pytest.mark.parametrize(
    ("check", "gold", "text", "wanted"),
    [
        ("word", "Paris", "The capital of France is Paris.", True),
        ("word", "Paris", "The Parisian way", False),
        ("word", "Au", "au pair", False),
        ("line", "cold|cool", " Cool.", True),
        ("line", "cold", "not cold", False),
        ("truth", "false", "False. It is not true", True),
        ("number", "12", "7 + 5 = 12.", True),
        ("number", "1200", "It is 1,200.00", True),
        ("numbers", "1, 2, 3", "1 2 3", True),
        ("numbers", "1, 2, 3", "1, 3, 2", False),
        ("copy", "red sea", "Red sea!", True),
        ("record", '{"name": "Adam", "age": 3}', 'So: {"name": "adam", "age": "3", "more": 1}', True),
        ("record", '{"name": "Adam", "age": 3}', '{"name": "Adam"', False),
    ],
)
def test_answers_are_checked_as_a_reader_would(check: str, gold: str, text: str, wanted: bool) -> None:
    assert right(check, gold, text) is wanted


def test_the_answers_file_continues_where_it_stopped(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a", "id": "1"}\n{"key": "b", "i')
    assert list(answers(path)) == ["a"]


def test_the_prior_ranks_and_long_answers_are_not_high_for_their_length(rows: Rows) -> None:
    for form in ("fewshot", "chat"):
        assert methods.auroc(methods.prior(of(rows, form)), of(rows, form)) > 0.75
    long = of(rows, "long")
    high = methods.prior(long) >= methods.THRESHOLD
    assert high[long["temperature"] < 1.0].mean() <= 0.1
    assert high[long["temperature"] == 1.0].mean() >= 0.5, "mostly word salad"


def test_an_alarm_can_fire_on_any_labels_and_no_weight_points_the_wrong_way(rows: Rows) -> None:
    """The lowest margin is 0 in nine of ten long answers and in most chat answers: it may carry nothing."""
    assert (of(rows, "long").runs.columns["margin_min"] == 0).mean() > 0.8
    chat = of(rows, "chat")
    for seed in range(2):
        some = chat.take(np.random.default_rng(seed).permutation(len(chat))[:60])
        profile = fit(some.runs, some["wrong"])
        assert all(term.coefficient * DIRECTIONS.get(term.name, 0) >= 0 for term in profile.terms)
        if profile.alarm is not None:
            assert profile.alarm.signal != "margin_min"
            rate = max(methods.ALARM_RATE, 1 / (len(profile.alarm.good) + 1))  # as few good runs allow
            limit = profile.alarm.threshold(rate)
            over = [(value := profile.alarm.value(one)) is not None and value > limit for one in some.runs]
            assert 0 < sum(over) < len(over)


def test_mixed_traffic_does_not_shift_and_the_start_does_not_lower_the_ranking(rows: Rows) -> None:
    short = of(rows, "fewshot", "chat")
    often = np.random.default_rng(0).integers(0, len(short), 1200)  # as many as a server sees in some minutes
    many = short.take(often)
    score, by_baseline, shifted = methods.served(many, np.arange(len(many)))
    assert by_baseline.mean() > 0.4
    assert shifted.mean() <= 0.01
    assert methods.auroc(score, many) > methods.auroc(methods.prior(many), many) - 0.03
