"""What an unchecked vLLM is told."""

import logging
from collections.abc import Callable

import pytest

from corevital.engines import vllm_names


@pytest.mark.parametrize(("version", "warns"), [("0.26.1", 1), ("0.32.0", 0), ("0.33.0rc1", 1), ("1.0", 1), ("dev", 1)])
def test_a_vllm_outside_the_checked_range_is_said_once(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]], version: str, warns: int
) -> None:
    monkeypatch.setattr(vllm_names, "version", lambda: version)
    for _ in range(3):
        vllm_names.warn_if_unchecked()
    assert len([record for record in logged() if "outside the checked range" in record.message]) == warns
