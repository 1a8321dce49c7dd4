"""Streaming input: one sequence whose prompt grows between its outputs, re-added to the engine each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from integration.harness.runners import RUNNERS, runner_environment
from tests.harness.processes import environment

from corevital_otel.store.reader import StoredReport, StoreReader

pytestmark = pytest.mark.engine


def session(folder: Path, runner: str, *arguments: str) -> tuple[list[int], StoredReport]:
    env = {"COREVITAL_DB": str(folder / "corevital.db"), "COREVITAL_CAPTURE": "full", **runner_environment(runner)}
    done = subprocess.run(
        [sys.executable, "-m", "integration.harness.session", "out.json", *arguments],
        cwd=folder, env=environment(env), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (row,) = StoreReader(folder / "corevital.db").get("session")
    return json.loads((folder / "out.json").read_text()), row


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_session_is_one_sequence_with_all_its_tokens(runner: str, tmp_path: Path) -> None:
    tokens, row = session(tmp_path, runner)
    assert row.output_tokens == row.summary["corevital.tokens.observed"] == len(tokens) == 16
    assert "corevital.incomplete" not in row.summary


def test_input_that_overtakes_the_answer_leaves_tokens_unmeasured_and_marks_the_span(tmp_path: Path) -> None:
    tokens, row = session(tmp_path, RUNNERS[-1], "--queued")
    assert row.output_tokens == len(tokens) > row.summary["corevital.tokens.observed"]
    assert row.summary["corevital.incomplete"] is True
