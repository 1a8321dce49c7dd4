"""A request's own wishes: read, or refused in one short line."""

import logging
from collections.abc import Callable

import pytest

from corevital.engines import xargs
from corevital.text import MAX_BYTES, printable


def test_a_requests_own_wishes_are_read() -> None:
    assert xargs.read(None) == xargs.RequestArgs()
    found = xargs.read(
        {"corevital_capture": "full", "corevital_sample": 0, "corevital_tags": "a, b,", "other": object()}
    )
    assert found == xargs.RequestArgs("full", False, ("a", "b"))
    assert xargs.read({"corevital_sample": "1"}).sample is True


def test_an_argument_that_only_looks_like_ours_fails_nothing_and_is_logged_once(
    logged: Callable[[], list[logging.LogRecord]],
) -> None:
    for name in ("corevital_samples", "corevital_tag", "theirs", 7):
        assert xargs.read({name: 1}) == xargs.RequestArgs()  # type: ignore[dict-item]  # offline nobody checks keys
    (said,) = logged()
    assert "unknown argument 'corevital_samples', ignored: use corevital_sample;" in said.getMessage()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("corevital_capture", "sometimes", "use one of summary, full, on_risk"),
        ("corevital_capture", 1, "use one of"),
        ("corevital_sample", 2, "use 0 or 1"),
        ("corevital_sample", 0.5, "use 0 or 1"),
        ("corevital_tags", ["a"], "one comma-separated string"),
        ("corevital_tags", ",".join("abcdefghijklmnopq"), "at most 16 tags"),
    ],
)
def test_a_wrong_wish_names_itself_and_what_is_allowed(name: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        xargs.read({name: value})
    assert name in str(error.value)
    assert "\n" not in str(error.value)


HALF = "\ud800"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("corevital_capture", "x" * 100_000),
        ("corevital_capture", "\x1b[2J\nforged line\u2028"),
        ("corevital_capture", HALF),
        ("corevital_capture", ["full"]),
        ("corevital_capture", {"a" * 100_000: {"b": "secret"}}),
        pytest.param("corevital_sample", 10**5000, id="huge"),
        ("corevital_sample", True),
        ("corevital_sample", 1.0),
        ("corevital_sample", [1]),
        ("corevital_sample", "1" * 100_000),
        ("corevital_tags", [HALF] * 100_000),
        ("corevital_tags", "," * 10_000_000),
        ("corevital_tags", "a" * 129),
        ("corevital_tags", 1),
    ],
)
def test_a_refusal_is_one_short_line_whatever_was_sent(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^vllm_xargs: {name}") as error:
        xargs.read({name: value})
    message = str(error.value)
    assert len(message) < 250
    assert printable(message) == message
    assert "secret" not in message


def test_tags_are_kept_in_bounded_utf_8() -> None:
    asked = xargs.read({"corevital_tags": "\U0001f600" * 128 + f", {HALF}x ,\x1b[2J"})
    assert [len(tag.encode()) for tag in asked.tags[:2]] == [MAX_BYTES, 2]
    assert asked.tags[1:] == ("?x", "\x1b[2J"), "what is unprintable is escaped where it is shown"


def test_an_unknown_argument_is_logged_in_one_short_line(logged: Callable[[], list[logging.LogRecord]]) -> None:
    xargs.read({f"corevital_{HALF}\n\x1b[2J{'x' * 100_000}": 1})
    (line,) = [record.getMessage() for record in logged()]
    assert len(line) < 250
    assert printable(line) == line
