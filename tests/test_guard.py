"""An error in our code never leaves it, is counted, and is logged once."""

import logging
from collections.abc import Callable

import pytest

from corevital import guard


def test_an_error_is_swallowed_counted_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")

    @guard.guarded("a test")
    def faulty(value: int) -> int:
        raise RuntimeError(f"broken {value}")

    before = guard.faults()
    assert [faulty(number) for number in range(3)] == [None, None, None]
    assert guard.faults() == before + 3
    (record,) = logged()
    assert "error in a test" in record.message
    assert record.exc_info is not None


def test_under_the_tests_it_is_raised() -> None:
    @guard.guarded("another test")
    def faulty() -> None:
        raise RuntimeError("seen")

    with pytest.raises(RuntimeError, match="seen"):
        faulty()
