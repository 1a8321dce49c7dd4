"""What a request's id tells, and what an unchecked vLLM is told."""

import logging
from collections.abc import Callable

import pytest

from corevital.engines import vllm_names, xargs


@pytest.mark.parametrize(
    ("engine_side", "client_side", "number", "operation"),
    [
        ("chatcmpl-8f3a", "chatcmpl-8f3a", 0, "chat"),
        ("cmpl-8f3a-0", "cmpl-8f3a", 0, "text_completion"),
        ("cmpl-my-own-id-12", "cmpl-my-own-id", 12, "text_completion"),
        ("resp_8f3a_1", "resp_8f3a", 1, "chat"),
        ("17", "17", 0, "text_completion"),
    ],
)
def test_the_id_is_the_one_the_client_sees(engine_side: str, client_side: str, number: int, operation: str) -> None:
    assert vllm_names.split_number(engine_side) == (client_side, number)
    assert vllm_names.operation(client_side) == operation


@pytest.mark.parametrize(("version", "warns"), [("0.26.1", 1), ("0.32.0", 0), ("0.33.0rc1", 1), ("1.0", 1), ("dev", 1)])
def test_a_vllm_outside_the_checked_range_is_said_once(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]], version: str, warns: int
) -> None:
    monkeypatch.setattr(vllm_names, "version", lambda: version)
    for _ in range(3):
        vllm_names.warn_if_unchecked()
    assert len([record for record in logged() if "outside the checked range" in record.message]) == warns


def test_a_requests_own_wishes_are_read() -> None:
    assert xargs.read(None) == xargs.RequestArgs()
    found = xargs.read(
        {"corevital_capture": "full", "corevital_sample": 0, "corevital_tags": "a, b,", "other": object()}
    )
    assert found == xargs.RequestArgs("full", False, ("a", "b"))
    assert xargs.read({"corevital_sample": "1"}).sample is True


def test_an_argument_that_only_looks_like_ours_fails_nothing_and_is_said_once(
    logged: Callable[[], list[logging.LogRecord]],
) -> None:
    for name in ("corevital_samples", "corevital_tag", "theirs", 7):
        assert xargs.read({name: 1}) == xargs.RequestArgs()  # type: ignore[dict-item]  # offline nobody checks keys
    (said,) = logged()
    assert "'corevital_samples' is no argument of ours" in said.getMessage()
    assert "use corevital_sample;" in said.getMessage()


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
