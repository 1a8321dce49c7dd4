"""A backend that fails on this machine costs speed and no measurement."""

import functools

import pytest
import torch

from corevital import log
from corevital.kernels import api as kernels
from corevital.kernels import numba_cpu as numba


def test_auto_passes_over_a_backend_that_fails_to_warm_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(vocab_size: int, device: torch.device) -> None:
        raise RuntimeError("no such driver")

    monkeypatch.setattr(numba, "warm_up", broken)
    monkeypatch.setattr(kernels, "_failed", set())
    monkeypatch.setattr(kernels, "_choose", functools.cache(kernels._choose.__wrapped__))
    monkeypatch.setattr(log, "_logged", set())
    log.configure()
    assert kernels.warm_up(100) == "torch"
    assert kernels.token_stats(torch.zeros(1, 100)).nan_count.tolist() == [0]
    with pytest.raises(RuntimeError, match="no such driver"):
        kernels.warm_up(100, backend="numba")
