"""Few slots, many requests: recycled at once, preempted, aborted. Each sequence is one span, nothing is mixed up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from integration.harness.runners import RUNNERS, runner_environment
from integration.harness.stress import REQUESTS
from tests.harness.processes import environment

from corevital_otel.store.reader import StoreReader

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_stress_of_preempted_and_aborted_requests_leaves_each_one_span(runner: str, tmp_path: Path) -> None:
    env = {"COREVITAL_DB": str(tmp_path / "corevital.db"), "COREVITAL_CAPTURE": "full", **runner_environment(runner)}
    done = subprocess.run(
        [sys.executable, "-m", "integration.harness.stress", "out.json"],
        cwd=tmp_path, env=environment(env), capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    outcome = json.loads((tmp_path / "out.json").read_text())
    results = outcome["results"]
    assert len(results) == REQUESTS
    assert outcome["preemptions"] > 20
    assert sum(result["reason"] == "abort" for result in results.values()) > 10

    rows = StoreReader(tmp_path / "corevital.db").list_reports(limit=10_000)
    assert sorted(row.request_id for row in rows) == sorted(results)
    for row in rows:
        result = results[row.request_id]
        assert row.finish_reason == result["reason"]
        assert "corevital.incomplete" not in row.summary, row
        assert row.summary["corevital.tokens.observed"] == row.output_tokens
        assert row.summary["corevital.runner"] == runner
        if result["tokens"] is not None:
            assert row.output_tokens == len(result["tokens"])

    memory = dict(outcome["memory_mb"])
    early, late = memory[min(done for done in memory if done >= REQUESTS / 3)], memory[max(memory)]
    assert late < early * 1.03, outcome["memory_mb"]
    assert "Traceback" not in done.stdout + done.stderr
    assert "corevital WARNING" not in done.stdout + done.stderr
