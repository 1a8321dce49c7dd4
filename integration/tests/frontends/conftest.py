"""What the engine answers without corevital: one run of each model runner for all frontends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import pytest
from integration.harness.frontends.mixed import Answer
from integration.harness.runners import runner_environment
from tests.harness.processes import environment

pytest.register_assert_rewrite("integration.harness.frontends.checks")


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Answer]]:
    """The answers by the requests' names, for a runner. No plugin of vLLM is loaded."""

    @cache
    def run(runner: str) -> dict[str, Answer]:
        out = tmp_path_factory.mktemp("reference") / "answers.json"
        env = environment({**runner_environment(runner), "VLLM_PLUGINS": ""})
        command = [sys.executable, "-m", "integration.harness.frontends.offline_client", str(out)]
        done = subprocess.run(
            command, cwd=out.parent, env=env, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return {data["name"]: Answer.from_json(data) for data in json.loads(out.read_text())}

    return run
