"""Text of others: escaped where it is shown, cut where it is kept."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from corevital.text import MAX_BYTES, cut, printable, printable_json, printable_lines

ANY = st.text(st.characters(exclude_categories=()))


@given(ANY)
def test_what_is_shown_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)
    shown.encode()  # UTF-8 can hold it


@given(ANY, st.integers(0, 40))
def test_what_is_kept_is_the_beginning_and_fits(text: str, limit: int) -> None:
    kept = cut(text, limit)
    assert len(kept.encode()) <= limit
    assert text.encode("utf-8", "replace").startswith(kept.encode())
    assert len(kept.encode()) > limit - 4 or kept == text.encode("utf-8", "replace").decode()


@given(ANY)
def test_a_document_stays_the_same(text: str) -> None:
    document = json.dumps({text: [text]}, ensure_ascii=False)
    assert json.loads(printable_json(document)) == json.loads(document)


def test_long_text_is_shortened_before_it_is_escaped() -> None:
    assert printable("a\x1b" * 1000, 5) == "a\\x1ba\\x1b…"
    assert cut("ab" * MAX_BYTES) == "ab" * (MAX_BYTES // 2)
    assert printable_lines("a\n\tb\r\x07") == "a\n\tb\\r\\x07"
    assert printable("日本 ok [tag] 😀") == "日本 ok [tag] 😀"
