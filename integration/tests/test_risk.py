"""Risk on a real server: a baseline that survives a restart, a profile fitted on the store itself, and its alarm."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.harness.vllm_server import MODEL_NAME, Vllm, vllm
from tests.harness.processes import environment

from corevital_otel.cli.demo.tasks import check, make_tasks
from corevital_otel.risk.baseline import SEEN
from corevital_otel.store.reader import StoredReport, StoreReader

pytestmark = pytest.mark.engine

TASKS = [task for kind in ("add", "sum", "sort", "fact") for task in make_tasks(kind, 80, 3)]
"""As many as the baseline needs, and a few more."""

MOST = 0.8
"""At least this share of the answers to gibberish, which differ most from good runs, raises the alarm."""


async def ask(server: Vllm, prompts: list[str], **body: Any) -> list[tuple[str, str]]:
    """Send prompts, all at once; request id and answer of each."""
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=0)

    async def one(http: httpx.AsyncClient, prompt: str) -> tuple[str, str]:
        message = {"model": MODEL_NAME, "messages": [{"role": "user", "content": prompt}], "max_tokens": 80, **body}
        found = (await http.post(f"{server.url}/v1/chat/completions", json=message)).raise_for_status().json()
        return found["id"], found["choices"][0]["message"]["content"]

    async with httpx.AsyncClient(timeout=180, limits=limits) as http:
        return await asyncio.gather(*(one(http, prompt) for prompt in prompts))


GIBBERISH = ["zq xv jj 00 __ ?!" * 3] * 10
LONG: dict[str, Any] = {"temperature": 2.0, "ignore_eos": True, "max_tokens": 1800}


async def watched(server: Vllm, prompts: list[str]) -> tuple[list[tuple[str, str]], float]:
    """Send long requests at a high temperature, again until the gauge has counted most of them.

    Requests run for seconds, and a busy machine may pause for as long: the gauge may lag.

    Returns:
        Request id and answer of each, and the most that the gauge counted at once.
    """
    most, answers, deadline = 0.0, [], time.monotonic() + 120
    async with httpx.AsyncClient(timeout=60) as http:
        while most < MOST * len(prompts) and time.monotonic() < deadline:
            asked = asyncio.create_task(ask(server, prompts, **LONG))
            while not asked.done():
                text = (await http.get(f"{server.url}/metrics")).text
                most = max([most, *map(float, re.findall(r"corevital_sequences_alarmed\{.*\} ([\d.]+)", text))])
                await asyncio.sleep(0.1)
            answers += await asked
    return answers, most


def corevital(*arguments: str) -> str:
    command = [sys.executable, "-m", "corevital_otel.cli", *arguments]
    done = subprocess.run(command, env=environment({}), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def reports(db: Path) -> list[StoredReport]:
    return StoreReader(db).list_reports(limit=10_000)


def bases(db: Path, ids: list[str]) -> Counter[str]:
    """Of a running server: on a stop signal vLLM kills its engine at once, and loses its last statistics."""
    deadline = time.monotonic() + 30
    while len(found := [report for report in reports(db) if report.request_id in set(ids)]) < len(ids):
        assert time.monotonic() < deadline, f"{len(found)} of {len(ids)} requests reported"
        time.sleep(0.1)
    assert not [report.request_id for report in found if "corevital.incomplete" in report.summary]
    return Counter(report.risk_basis for report in found)


def test_from_traffic_to_a_baseline_and_from_labels_to_a_profile(tmp_path: Path) -> None:
    db, labels, profile = tmp_path / "runs/corevital.db", tmp_path / "labels.csv", tmp_path / "profile.json"
    with vllm(tmp_path, env={}) as server:
        answers = asyncio.run(ask(server, [task.prompt for task in TASKS], temperature=0.7))
        found = bases(db, [request_id for request_id, _ in answers])
    assert found["prior"] >= SEEN, "and one more for each with a fault flag, which the baseline does not learn from"
    assert found["baseline"] >= 10, found

    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("request_id", "kind", "correct"))
        for task, (request_id, answer) in zip(TASKS, answers, strict=True):
            writer.writerow((request_id, task.kind, check(task, answer)))
    joined = ("--label", "correct", "--labels", str(labels))
    assert "320 labelled runs" in corevital("calibrate", str(db), *joined, "--out", str(profile))
    measured = json.loads(corevital("evaluate", str(profile), str(db), *joined, "--group", "kind", "--json"))
    assert measured["overall"]["n"] == len(TASKS)
    assert measured["overall"]["auroc"] > 0.7, "on the runs it was fitted on: this shows that it works, not how well"

    with vllm(tmp_path, env={}) as server:
        again = asyncio.run(ask(server, [task.prompt for task in TASKS[:5]], temperature=0.7))
        assert bases(db, [request_id for request_id, _ in again]) == {"baseline": 5}, "from the first request on"

    with vllm(tmp_path, env={"COREVITAL_PROFILE": str(profile), "COREVITAL_ALARM_RATE": "0.1"}) as server:
        calm = asyncio.run(ask(server, [task.prompt for task in TASKS[:20]], temperature=0.7))
        wild, alarmed_at_once = asyncio.run(watched(server, GIBBERISH))
        ended = asyncio.run(ask(server, GIBBERISH, **LONG, vllm_xargs={"corevital_stop_on": "alarm"}))
        asked = [request_id for request_id, _ in calm + wild + ended]
        assert bases(db, asked) == {"calibrated": len(asked)}
        metrics = httpx.get(f"{server.url}/metrics").text
    of = {report.request_id: report for report in reports(db)}
    assert alarmed_at_once >= MOST * 10
    alarmed = [of[request_id].summary for request_id, _ in wild if "alarm_raised" in of[request_id].flags]
    assert len(alarmed) >= MOST * len(wild)
    assert all(0 <= summary["corevital.alarm.onset"] < 1800 for summary in alarmed)
    stopped = [of[request_id] for request_id, _ in ended if "corevital.stop_reason" in of[request_id].summary]
    assert len(stopped) >= MOST * len(ended)
    for report in stopped:
        assert report.summary["corevital.stop_reason"] == "corevital:alarm"
        assert report.finish_reason == "stop"
        assert report.summary["corevital.alarm.onset"] < report.output_tokens < LONG["max_tokens"]
    counted = re.search(r'corevital_health_warnings_total\{.*warning="alarm_raised"\} ([\d.]+)', metrics)
    assert counted is not None
    assert float(counted[1]) >= len(alarmed)
    shown = corevital("show", wild[0][0], "--db", str(db))
    assert "of the runs with this score were bad" in " ".join(shown.lower().split())
    assert "alarm: from token" in shown
