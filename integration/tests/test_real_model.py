"""A slice of ``make bench-real``: SmolLM2 on real vLLM, and what corevital says about its answers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from integration.bench.real import methods
from integration.bench.real.ask import Job, answers, ask, bar, jobs
from integration.bench.real.model import FOLDER, NAME
from integration.bench.real.rows import Rows, read, stored
from integration.harness.vllm_server import vllm
from tests.harness.processes import ROOT, within

from corevital_otel.risk.prior import PriorRisk
from corevital_otel.risk.table import scores

pytestmark = pytest.mark.engine

SHORT: tuple[str, ...] = ("capital", "past", "sum", "largest", "continent")
LONG_TOKENS = 160


def wanted() -> list[Job]:
    """Completions of five tasks at both temperatures, and a few long answers at each."""
    found = [job for job in jobs() if job.form == "fewshot" and job.kind in SHORT]
    by_kind = [job for kind in SHORT for job in [job for job in found if job.kind == kind][:24]]
    long = [
        Job(job.key, job.form, job.kind, job.prompt, job.temperature, LONG_TOKENS)
        for t in (0.0, 0.7, 1.0)
        for job in [job for job in jobs() if job.form == "long" and job.temperature == t][:5]
    ]
    return by_kind + long


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder = tmp_path_factory.mktemp("real")
    made = subprocess.run(
        [sys.executable, "-m", "integration.bench.real.model"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr[-2000:]
    env = {"COREVITAL_DB": str(folder / "corevital.db"), "COREVITAL_CAPTURE": "summary", "VLLM_CPU_KVCACHE_SPACE": "2"}
    path = folder / "answers.jsonl"
    with vllm(folder, env=env, model=(NAME, FOLDER), ready_s=900.0) as server, bar() as progress:
        asyncio.run(ask(server.url, wanted(), path, 3600.0, progress))
        within(60, lambda: not {one["id"] for one in answers(path).values()} - stored(folder))
    return read(folder)


def test_every_answer_is_in_the_store_and_some_are_right(rows: Rows) -> None:
    assert len(rows) == len(wanted())
    short = rows.take(rows["form"] == "fewshot")
    assert 0.1 < short["wrong"].mean() < 0.9
    assert np.isfinite(rows.runs.columns["surprisal_sum"]).all()
    assert ((rows.runs.columns["margin_close_share"] >= 0) & (rows.runs.columns["margin_close_share"] <= 1)).all()


def test_wrong_answers_have_more_risk(rows: Rows) -> None:
    short = rows.take(rows["form"] == "fewshot")
    assert methods.auroc(methods.prior(short), short) > 0.65
    assert methods.auroc(methods.baseline(short), short) > 0.65


def test_long_answers_are_not_high_for_their_length(rows: Rows) -> None:
    long = rows.take((rows["form"] == "long") & (rows["temperature"] < 1.0))
    high = scores(PriorRisk(methods.THRESHOLD), long.runs) >= methods.THRESHOLD
    assert high.sum() <= 2


def test_the_lowest_margin_ties_and_carries_no_alarm(rows: Rows) -> None:
    long = rows.take(rows["form"] == "long")
    assert (long.runs.columns["margin_min"] == 0).mean() > 0.3, "bfloat16 logits tie"
    short = rows.take(rows["form"] == "fewshot")
    best = methods.alarm_trials(short)[0]
    assert best[3] > 0, "the chosen alarm finds some bad answers"


def test_the_answers_file_continues_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a", "id": "1"}\n{"key": "b", "i')
    assert list(answers(path)) == ["a"]
