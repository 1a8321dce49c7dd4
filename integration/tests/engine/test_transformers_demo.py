"""``corevital demo --engine transformers``, as a newcomer runs it: no server, the same summary."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from integration.harness.runners import python_path
from tests.harness.processes import environment

from corevital_otel.store.reader import StoreReader


def demo(folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corevital_otel.cli", "demo", "--engine", "transformers", "--requests", "21", *options],
        cwd=folder, env=environment(env), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.timeout(220)
def test_the_demo_without_a_server_shows_each_request_with_its_risk(tmp_path: Path) -> None:
    done = demo(tmp_path)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    match = re.fullmatch(r"demo: 21 requests, (\d+) spans, DB at runs/corevital\.db", last)
    assert match, last
    rows = StoreReader(tmp_path / "runs/corevital.db").list_reports(limit=1000)
    assert len(rows) == int(match[1]) == 24, "three prompts with two answers"
    assert {row.summary["corevital.engine"] for row in rows} == {"transformers"}
    assert {row.model for row in rows} == {"corevital-demo"}
    assert not any(row.summary.get("corevital.incomplete") for row in rows)
    text = done.stdout
    for part in ("right", "truncated", "loop", "low", "OTEL_EXPORTER_OTLP_ENDPOINT", "corevital show generate-"):
        assert part in text, part


def test_a_failure_of_the_engine_is_one_line_with_the_log_s_last(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("raise RuntimeError('no luck today')\n")
    done = demo(tmp_path, PYTHONPATH=python_path(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "transformers ended early" in done.stderr
    assert "no luck today" in done.stderr
    assert "runs/demo-transformers.log" in done.stderr
