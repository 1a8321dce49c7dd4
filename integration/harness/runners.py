"""vLLM's two model runners: which of them the installed vLLM can run on a CPU, and how to select one."""

import importlib.util
import os
from pathlib import Path

from tests.harness.processes import ROOT


def _runners() -> tuple[str, ...]:
    """The model runners of the installed vLLM that can run here: V2 has logits processors since 0.31."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    worker = Path(spec.submodule_search_locations[0]) / "v1/worker"
    v2 = (worker / "gpu/sample/logits_processor").exists() and (worker / "cpu/model_runner.py").exists()
    return ("v1", "mrv2") if v2 else ("v1",)


RUNNERS = _runners()


def python_path(*folders: Path) -> str:
    """``PYTHONPATH`` with these folders and the repository first."""
    return ":".join([*map(str, folders), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def runner_environment(runner: str) -> dict[str, str]:
    """The environment that makes vLLM choose a model runner on a CPU, where V1 is its default."""
    if runner == "v1":
        return {"PYTHONPATH": python_path()}
    return {
        "PYTHONPATH": python_path(ROOT / "integration/harness/mrv2_on_cpu"),
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "TORCHDYNAMO_DISABLE": "1",  # it would ask the fake Triton driver
    }
