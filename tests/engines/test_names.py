"""An unchecked version of vLLM is logged."""

import logging
from collections.abc import Callable

import pytest

from corevital.engines.vllm import names


@pytest.mark.parametrize(("version", "warns"), [("0.26.1", 1), ("0.32.0", 0), ("0.33.0rc1", 1), ("1.0", 1), ("dev", 1)])
def test_a_vllm_outside_the_checked_range_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]], version: str, warns: int
) -> None:
    monkeypatch.setattr(names, "version", lambda: version)
    for _ in range(3):
        names.warn_if_unchecked()
    assert len([record for record in logged() if "outside the checked range" in record.message]) == warns
