"""What is done for an accelerator is run on the CPU too: tables made by torch alone, and in Triton's interpreter."""

from __future__ import annotations

import pytest

from corevital.engines import emitter, vllm_v1, vllm_v2
from corevital.kernels import available_backends

INTERPRETED = "triton" in available_backends("cpu")  # chosen for a process as a whole: see test_gpu_tables.py


@pytest.fixture(params=["gpu"] if INTERPRETED else ["host", "device"])
def tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the emitter takes the logits to be."""
    where: str = request.param
    if where != "host":
        monkeypatch.setattr(emitter, "by_address", lambda device: None)
    if where == "gpu":
        for module in (emitter, vllm_v1, vllm_v2):
            monkeypatch.setattr(module, "is_compiled", lambda device: True)
    return where
