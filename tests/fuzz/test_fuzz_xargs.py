"""Mutated ``vllm_xargs``: a result within its bounds, or one short line. Nothing else leaves ``xargs.read``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corevital.engines.vllm import request_args as xargs
from corevital.supported import CAPTURE_MODES
from corevital.text import MAX_BYTES, printable

NAMES = ("corevital_capture", "corevital_sample", "corevital_tags", "corevital_traceparent", "corevital_sampel",
         "corevital", "corevital_", "x")  # fmt: skip
PARENT = f"00-{'1a' * 16}-{'2b' * 8}-01"
TEXT = st.text(st.characters(codec=None), max_size=80)  # halves of surrogate pairs and control characters too
LONG = st.builds(lambda text, times: text * times, TEXT, st.sampled_from([1, 10, 1000]))
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | LONG | st.binary(max_size=8)
KNOWN = st.sampled_from(
    ["full", "summary", "on_risk", "0", "1", 0, 1, 10**5000, "a,b", ",".join("abcdefghijklmnopq"), PARENT]
)
VALUE = KNOWN | st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)
KEY: st.SearchStrategy[Any] = st.sampled_from(NAMES) | TEXT.map("corevital_".__add__) | st.integers() | LONG


@settings(max_examples=300, deadline=timedelta(seconds=2), suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.dictionaries(KEY, VALUE, max_size=4))
def test_mutated_arguments_end_in_a_result_or_one_short_line(extra_args: dict[Any, Any]) -> None:
    try:
        found = xargs.read(extra_args)
    except ValueError as error:
        message = str(error)
        assert message.startswith("vllm_xargs: corevital_")
        assert len(message) < 250
        assert printable(message) == message
        return
    assert found.capture is None or found.capture in CAPTURE_MODES
    assert found.sample in (None, True, False)
    assert found.traceparent in (None, PARENT)
    assert xargs.read_valid(extra_args) == found
    assert len(found.tags) <= 16
    for tag in found.tags:
        assert 0 < len(tag.encode()) <= MAX_BYTES
