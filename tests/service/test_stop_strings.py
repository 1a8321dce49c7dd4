"""Without what it takes to decode tokens, an abort stays an abort. integration/tests/test_stop_strings.py decodes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import pytest

from corevital.frames.lifecycle import Finished, StopRule
from corevital_otel.service.stop_strings import StopStrings

ABORTED = Finished(reason="abort", token_ids=(1, 2, 3), end_ns=1)
RULE = StopRule(stop=("x",))


def test_without_the_library_an_abort_stays_and_that_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # importing it fails
    stops = StopStrings("org/model\n", None, True)
    for _ in range(3):
        assert stops.resolve(ABORTED, RULE) == ABORTED
        assert stops.decode_text((1, 2)) is None
    (line,) = [record.getMessage() for record in logged()]
    assert line == (
        "cannot decode tokens of org/model\\n: the package tokenizers is not installed. "
        "A request that a stop string ends is reported as aborted"
    )


@pytest.mark.parametrize(
    ("outcome", "rule"),
    [
        (Finished(reason="stop", token_ids=(1, 2, 3), end_ns=1), RULE),
        (Finished(reason="length", token_ids=(1, 2, 3), end_ns=1), RULE),
        (Finished(reason="error", token_ids=(1, 2, 3), end_ns=1), RULE),
        (ABORTED, StopRule(stop=())),
        (ABORTED, StopRule(stop=("x",), min_tokens=3)),
        (Finished(reason="abort", token_ids=(), end_ns=1), RULE),
    ],
)
def test_what_can_be_no_stop_string_needs_no_tokenizer(
    outcome: Finished, rule: StopRule, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    stops = StopStrings("model", None, False)
    assert stops.resolve(outcome, rule) == outcome
    assert stops.decode_text((1, 2)) is None, "content may not leave the process"
    assert logged() == []
