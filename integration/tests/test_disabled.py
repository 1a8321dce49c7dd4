"""``COREVITAL_ENABLED=0`` starts nothing. Engine and frontend share one process here, so our threads would show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from integration.harness.vllm_server import MODEL
from tests.harness.processes import environment

pytestmark = pytest.mark.engine

RUN = """
import json, sys, threading
import starlette.applications
from prometheus_client import REGISTRY
from vllm import LLM, SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

llm = LLM(sys.argv[1], logits_processors=["corevital"], dtype="float32", max_model_len=512, enforce_eager=True)
llm.generate(["What is 1 + 1?"], [SamplingParams(max_tokens=4)], use_tqdm=False)
ours = ("corevital", "gen_ai")
print("found", json.dumps({
    "threads": sorted(t.name for t in threading.enumerate() if t.name.startswith((*ours, "Otel"))),
    "metrics": sorted(m.name for m in REGISTRY.collect() if m.name.startswith(ours)),
    "processors": llm.llm_engine.vllm_config.model_config.logits_processors,
    "routes": hasattr(starlette.applications.Starlette.__call__, "_corevital"),
    "engine": hasattr(LLMEngine.__init__, "_corevital"),
    "telemetry": sorted({"corevital_otel.service.loop", "corevital.engines.vllm.processor"} & set(sys.modules)),
}))
"""


@pytest.mark.parametrize("enabled", ["0", "1"])
def test_disabled_starts_nothing_in_the_process(enabled: str, tmp_path: Path) -> None:
    env = {
        "COREVITAL_ENABLED": enabled,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(MODEL)],
        cwd=tmp_path, env=environment(env), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    found = json.loads(line.removeprefix("found "))
    if enabled == "1":  # the same check finds them where they run
        assert {"corevital-hub", "corevital-store", "corevital-frames"} <= set(found["threads"])
        assert "corevital_requests" in found["metrics"]
        assert found["processors"]
        assert found["routes"]
        assert found["engine"]
        assert found["telemetry"]
        assert (tmp_path / "runs/corevital.db").exists()
        return
    assert found == {
        "threads": [], "metrics": [], "processors": None, "routes": False, "engine": False, "telemetry": [],
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    assert "corevital" not in "".join(line for line in done.stderr.splitlines() if "http" not in line.lower())
