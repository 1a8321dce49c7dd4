"""The command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("COREVITAL_", "OTEL_", "VLLM_"))
        }
        command = [sys.executable, "-m", "corevital_otel.cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env={**clean, **env}, capture_output=True, text=True, timeout=60, check=False
        )

    return run
