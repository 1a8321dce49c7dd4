"""What is done for an accelerator is run on the CPU too: tables made by torch alone, and in Triton's interpreter."""

from __future__ import annotations

import pytest

from corevital.engines.vllm import runner_v1, runner_v2
from corevital.kernels import available_backends
from corevital.steps import recorder

INTERPRETED = "triton" in available_backends("cpu")  # chosen for a process as a whole: see test_gpu_tables.py


@pytest.fixture(params=["gpu"] if INTERPRETED else ["host", "device"])
def tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the recorder takes the logits to be."""
    where: str = request.param
    if where != "host":
        monkeypatch.setattr(recorder, "by_address", lambda device: None)
    if where == "gpu":
        for module in (recorder, runner_v1, runner_v2):
            monkeypatch.setattr(module, "is_compiled", lambda device: True)
    return where
