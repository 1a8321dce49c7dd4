"""What is kept of a request is valid UTF-8 of a bounded length, and the rest of it is left alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from corevital.frames.lifecycle import Admitted, Finished

STRINGS = [
    field.name
    for field in dataclasses.fields(Admitted)
    if "str" in str(field.type) and field.name not in ("prompt_text", "tags")
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


def test_tags_are_few_and_short() -> None:
    kept = asked(tags=("x" * 10_000, "\udcff", *["t"] * 5000)).bounded(100).tags
    assert kept == ("x" * 256, "?", *["t"] * 14)


def test_content_is_cut_and_its_length_known() -> None:
    kept = asked(prompt_text="p" * 1000).bounded(100)
    assert (kept.prompt_text, kept.prompt_characters) == ("p" * 100, 1000)
    ended = Finished(reason="r" * 1000, token_ids=(1, 2), end_ns=1, text="t" * 1000).bounded(100)
    assert (len(ended.reason), ended.text, ended.text_characters) == (256, "t" * 100, 1000)
