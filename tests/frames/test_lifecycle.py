"""What is kept of a request is valid UTF-8 of a bounded length, and the rest of it is left alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from corevital.frames.lifecycle import Admitted, CoreFacts, Finished, StopRule

STRINGS = [
    field.name
    for field in dataclasses.fields(Admitted)
    if "str" in str(field.type) and field.name not in ("prompt_text", "tags", "stop_sequences", "tracestate")
]


def asked(**changes: Any) -> Admitted:
    values: dict[str, Any] = {"request_id": "r", "engine_id": "e", "sequence": 0, "operation": "chat", "model": "m"}
    return Admitted(**{**values, "arrival_ns": 1, "prompt_tokens": 1, **changes})


def test_what_fits_is_the_same_object() -> None:
    whole = asked(tags=("a", "b"), prompt_text="x" * 100, capture="full", prompt_hash="0" * 32)
    assert whole.bounded(100) is whole
    ended = Finished(reason="stop", token_ids=(1,), end_ns=1, text="x" * 100)
    assert ended.bounded(100) is ended


@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("text", ["x" * 100_000, "ä" * 300, "\udcff" * 300, "\U0001f600" * 100, "a\ud800"])
def test_each_string_is_cut(name: str, text: str) -> None:
    kept = getattr(asked(**{name: text}).bounded(100), name)
    assert 0 < len(kept.encode()) <= 256
    assert asked(**{name: "ü"}).bounded(100) == asked(**{name: "ü"})


@pytest.mark.parametrize("name", ["tags", "stop_sequences"])
def test_lists_of_strings_are_few_and_short(name: str) -> None:
    texts = ("x" * 10_000, "\udcff", *["t"] * 5000)
    assert getattr(asked(**{name: texts}).bounded(100), name) == ("x" * 256, "?", *["t"] * 14)


def test_a_stop_string_is_cut() -> None:
    ended = Finished(reason="stop", token_ids=(), end_ns=1, core=CoreFacts(stop_reason="x" * 1000)).bounded(100)
    assert ended.core.stop_reason == "x" * 256


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("a=1,b=2", "a=1,b=2"),
        ("a=1," + "b=" + "x" * 505, "a=1," + "b=" + "x" * 505),
        ("a=1,b=" + "x" * 504 + ",c=3", "a=1,b=" + "x" * 504),
        ("a=1,b=" + "x" * 1000 + ",c=3", "a=1"),
        ("x" * 100_000, None),
        ("a=ä", None),
        ("a=1\n", None),
    ],
)
def test_a_trace_state_is_kept_in_whole_members(state: str, kept: str | None) -> None:
    assert asked(tracestate=state).bounded(100).tracestate == kept


def test_stop_strings_are_few_and_never_cut() -> None:
    ended = Finished(reason="abort", token_ids=(), end_ns=1, stop_rule=StopRule(stop=("a", "b"), prompt_end=(1, 2)))
    assert ended.bounded(100) is ended
    long = StopRule(stop=("", "x" * 1025, "x" * 1024, *["t"] * 5000), prompt_end=tuple(range(100)), min_tokens=3)
    kept = dataclasses.replace(ended, stop_rule=long).bounded(100).stop_rule
    assert kept == StopRule(stop=("x" * 1024, *["t"] * 63), prompt_end=tuple(range(84, 100)), min_tokens=3)


def test_facts_fill_in_what_others_do_not_say() -> None:
    assert CoreFacts(queue_s=1.0).over(CoreFacts(queue_s=2.0, preemptions=0)) == CoreFacts(queue_s=1.0, preemptions=0)


def test_content_is_cut_and_its_length_known() -> None:
    kept = asked(prompt_text="p" * 1000).bounded(100)
    assert (kept.prompt_text, kept.prompt_characters) == ("p" * 100, 1000)
    ended = Finished(reason="r" * 1000, token_ids=(1, 2), end_ns=1, text="t" * 1000).bounded(100)
    assert (len(ended.reason), ended.text, ended.text_characters) == (256, "t" * 100, 1000)
