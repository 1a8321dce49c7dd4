"""vLLM's Rust frontend of the installed version: where it is, and how ``vllm serve`` is made to use it."""

from __future__ import annotations

import importlib.metadata

from tests.harness.processes import ROOT

BINARY = ROOT / f".venv-rust/vllm-rs-{importlib.metadata.version('vllm').partition('+')[0]}"


def rust_environment() -> dict[str, str]:
    return {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(BINARY)}
