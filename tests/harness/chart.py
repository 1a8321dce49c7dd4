"""Asks tests/harness/manifests.py, which runs in the environment that has Helm's library."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-kube/bin/python"


def asked(**question: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The answers by case: ``render`` and ``lint`` of values, ``validate`` of manifests."""
    if not PYTHON.exists():
        pytest.skip("no .venv-kube: `make check-dashboards` makes it")
    done = subprocess.run(
        [PYTHON, ROOT / "tests/harness/manifests.py"],
        input=json.dumps(question),
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
