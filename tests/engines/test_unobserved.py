"""Requests without a stamp are one warning in a worker's log, which names the frontend."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from corevital.engines.vllm.unobserved import Unobserved
from corevital.frames.stamp import Stamp

Logged = Callable[[], list[logging.LogRecord]]
STAMP = Stamp("0" * 32, 1)


def serve(seconds: int, stamped_at: int | None = None, **extra: object) -> None:
    """A request each second, at one of which there is a stamp."""
    now = [1e6]
    watched = Unobserved(lambda: now[0])
    params: Any = SimpleNamespace(extra_args=extra or None)
    for second in range(seconds):
        now[0] = 1e6 + second
        watched.note(params, STAMP if second == stamped_at else None)


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ("1", "a stamp of vLLM's Rust frontend (VLLM_USE_RUST_FRONTEND) or of the engine core: where"),
        ("0", "a stamp of the frontend (vLLM's Python API server, or another client of the engine core) or of"),
        (None, "a stamp of the frontend (vLLM's Python API server, or another client of the engine core) or of"),
    ],
)
def test_a_minute_without_a_stamp_is_one_warning_that_names_the_frontend_and_the_fix(
    chosen: str | None, name: str, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_USE_RUST_FRONTEND", raising=False)
    if chosen is not None:
        monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", chosen)
    serve(59)
    assert not logged()
    serve(300)
    (record,) = logged()
    assert record.levelno == logging.WARNING
    for part in ("no request is measured: for 60 s", name, "install the same corevital", "vLLM's Python API server"):
        assert part in record.getMessage()


@pytest.mark.parametrize("second", [0, 30, 59])
def test_one_stamped_request_shows_that_requests_are_followed(second: int, logged: Logged) -> None:
    serve(300, stamped_at=second)
    assert not logged()


def test_requests_that_asked_not_to_be_measured_do_not_count(logged: Logged) -> None:
    serve(300, corevital_sample=0)
    assert not logged()
