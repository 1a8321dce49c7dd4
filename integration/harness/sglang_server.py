"""A real SGLang server with the demo model, in SGLang's own environment, ``.venv-sglang``.

SGLang ships no CPU build. Its parts that are pure Python, or have a CPU wheel, serve a small model with PyTorch;
:mod:`integration.harness.sglang_on_cpu` stands in for the modules that only CUDA wheels have. For tests only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from integration.harness.vllm_server import MODEL, MODEL_NAME
from tests.harness.processes import ROOT, Group, environment, free_port

PYTHON = ROOT / ".venv-sglang/bin/python"

_ON_CPU = {
    "PYTHONPATH": str(ROOT / "integration/harness/sglang_on_cpu"),
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "120",  # of several workers, while they load on a busy machine
    "OMP_NUM_THREADS": "1",  # more wait for each other, in a loop, where other processes have the cores
    "TORCH_COMPILE_DISABLE": "1",  # of one penalty: takes longer than all requests
}
_OPTIONS = (
    "--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native", "--sampling-backend", "pytorch",
    "--grammar-backend", "none", "--disable-cuda-graph", "--max-total-tokens", "8192", "--mem-fraction-static", "0.05",
    "--skip-server-warmup", "--random-seed", "7",
)  # fmt: skip


def _other_models() -> list[str]:
    """SGLang's modules of models, but the demo model's: each process would load all of them, for ten seconds."""
    return [file.stem for file in PYTHON.parent.parent.glob("lib/*/site-packages/sglang/srt/models/*.py")
            if file.stem not in ("__init__", "llama")]  # fmt: skip


class Sglang(Group):
    """A real ``sglang.launch_server`` with the demo model."""

    def __init__(self, folder: Path, *arguments: str, env: Mapping[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(PYTHON), "-m", "sglang.launch_server", "--model-path", str(MODEL)]
        command += ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(self.port)]
        full = environment({**_ON_CPU, "SGLANG_DISABLED_MODEL_ARCHS": ",".join(_other_models()), **env})
        super().__init__([*command, *_OPTIONS, *arguments], full, folder, folder / "sglang.log")

    def wait_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"SGLang ended with {self.process.returncode}:\n{self.text()[-4000:]}")
            try:
                if httpx.get(f"{self.url}/health", timeout=10).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise TimeoutError(self.text()[-4000:])
