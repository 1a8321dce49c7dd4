"""A request's arguments: read, or refused in one short line."""

import logging
from collections.abc import Callable

import pytest

from corevital.engines.request_args import RequestArgs, w3c_parent
from corevital.engines.vllm import request_args
from corevital.text import MAX_BYTES, printable

PARENT = f"00-{'1a' * 16}-{'2b' * 8}-01"


def test_a_requests_arguments_are_read() -> None:
    assert request_args.read(None) == RequestArgs()
    found = request_args.read(
        {"corevital_capture": "full", "corevital_sample": 0, "corevital_tags": "a, b,", "other": object()}
        | {"corevital_traceparent": PARENT}
    )
    assert found == RequestArgs("full", False, ("a", "b"), PARENT)
    assert request_args.read({"corevital_sample": "1"}).sample is True
    assert request_args.read({"corevital_stop_on": "loop, nan,"}).stop_on == ("nan", "loop")
    assert request_args.read({"corevital_stop_on": "none"}).stop_on == ()
    assert request_args.read({"corevital_return": 1}).verdict is True
    assert request_args.read({"corevital_return": "0"}).verdict is False


def test_an_argument_that_only_looks_like_ours_fails_nothing_and_is_logged_once(
    logged: Callable[[], list[logging.LogRecord]],
) -> None:
    for name in ("corevital_samples", "corevital_tag", "theirs", 7):
        assert request_args.read({name: 1}) == RequestArgs()  # type: ignore[dict-item]  # offline nobody checks keys
    (said,) = logged()
    assert "unknown argument 'corevital_samples', ignored: use corevital_sample;" in said.getMessage()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("corevital_capture", "sometimes", "use one of summary, full, on_risk"),
        ("corevital_capture", 1, "use one of"),
        ("corevital_sample", 2, "use 0 or 1"),
        ("corevital_sample", 0.5, "use 0 or 1"),
        ("corevital_return", 2, "corevital_return=2 is not allowed: use 0 or 1"),
        ("corevital_tags", ["a"], "one comma-separated string"),
        ("corevital_tags", ",".join("abcdefghijklmnopq"), "at most 16 tags"),
        ("corevital_stop_on", "loops", "some of nan, loop, alarm, or none"),
        ("corevital_stop_on", "", "some of nan, loop, alarm"),
        ("corevital_stop_on", "none,loop", "some of nan, loop, alarm"),
        ("corevital_stop_on", ["loop"], "some of nan, loop, alarm"),
        ("corevital_traceparent", "", "a W3C traceparent"),
        ("corevital_traceparent", 1, "a W3C traceparent"),
    ],
)
def test_a_wrong_argument_names_itself_and_what_is_allowed(name: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        request_args.read({name: value})
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
        ("corevital_stop_on", "loop," * 1_000_000),
        ("corevital_stop_on", True),
        ("corevital_traceparent", "00-" * 100_000),
        ("corevital_traceparent", f"{PARENT}\n"),
        ("corevital_traceparent", [PARENT]),
    ],
)
def test_a_refusal_is_one_short_line_whatever_was_sent(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^vllm_xargs: {name}") as error:
        request_args.read({name: value})
    message = str(error.value)
    assert len(message) < 250
    assert printable(message) == message
    assert "secret" not in message


def test_tags_are_kept_in_bounded_utf_8() -> None:
    asked = request_args.read({"corevital_tags": "\U0001f600" * 128 + f", {HALF}x ,\x1b[2J"})
    assert [len(tag.encode()) for tag in asked.tags[:2]] == [MAX_BYTES, 2]
    assert asked.tags[1:] == ("?x", "\x1b[2J"), "what is unprintable is escaped where it is shown"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (PARENT, PARENT),
        (f"01-{PARENT[3:]}-more", f"01-{PARENT[3:]}"),
        (PARENT.upper(), None),
        (f"{PARENT}-more", None),
        (f" {PARENT}", None),
        (f"ff-{PARENT[3:]}", None),
        (PARENT.replace("1a", "00"), None),
        (PARENT.replace("2b", "00"), None),
        (PARENT.replace("1a", "1\u0661"), None),
        (f"01-{PARENT[3:]}-{'x' * 300}", None),
    ],
)
def test_a_parent_is_as_w3c_writes_it(text: str, kept: str | None) -> None:
    assert w3c_parent(text) == kept


def test_where_nothing_can_be_refused_a_wrong_argument_is_left_out_and_logged_once(
    logged: Callable[[], list[logging.LogRecord]],
) -> None:
    for _ in range(2):
        found = request_args.read_valid({"corevital_traceparent": "x", "corevital_sample": 7, "corevital_tags": "a"})
        assert found == RequestArgs(tags=("a",))
    (line,) = [record.getMessage() for record in logged()]
    assert line.startswith("vllm_xargs: corevital_sample=7 is not allowed: use 0 or 1; ignored")


def test_an_unknown_argument_is_logged_in_one_short_line(logged: Callable[[], list[logging.LogRecord]]) -> None:
    request_args.read({f"corevital_{HALF}\n\x1b[2J{'x' * 100_000}": 1})
    (line,) = [record.getMessage() for record in logged()]
    assert len(line) < 250
    assert printable(line) == line
