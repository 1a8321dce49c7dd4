"""vLLM's Rust frontend of the installed version: where it is, and how ``vllm serve`` is made to use it."""

from __future__ import annotations

import importlib.metadata

from packaging.version import Version
from tests.harness.processes import ROOT

_VLLM = importlib.metadata.version("vllm").partition("+")[0]
BINARY = ROOT / f".venv-rust/vllm-rs-{_VLLM}"
HAS_GRPC = Version(_VLLM) >= Version("0.32")
"""Whether it also serves gRPC, at ``--grpc-port``."""


def rust_environment() -> dict[str, str]:
    return {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(BINARY)}
