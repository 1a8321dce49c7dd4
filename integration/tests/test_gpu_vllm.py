"""`make gpu-vllm`, dry on a CPU: the same code, tiny models. What it finds on a GPU is not tested here."""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.gpu_vllm.__main__ import Report, run
from integration.gpu_vllm.cost import judge
from integration.gpu_vllm.jobs import Answer, Job
from integration.gpu_vllm.models import resolve
from integration.gpu_vllm.pair import SETUPS, Pair
from integration.gpu_vllm.parity import parity
from integration.gpu_vllm.table import FAIL, NOT_JUDGED, NOT_RUN, OPEN, PASS
from integration.gpu_vllm.values import TOLERANCE, differences, entropy_bounds
from integration.harness.runners import RUNNERS
from tests.harness.processes import ROOT

from corevital_otel.report import Series

V = 2000


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "integration.gpu_vllm", *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )


def cells(table: str, title: str) -> list[dict[str, str]]:
    """The rows of one of the tables, by column."""
    part = table.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_a_dry_run_finds_parity_and_cost_and_continues_after_a_part_that_fails(tmp_path: Path) -> None:
    out, setups = tmp_path / "table.md", ["v1-async", "v2-async"] if "mrv2" in RUNNERS else ["v1-async"]
    sizes = ("--batches", "2", "--rounds", "2", "--cost-tokens", "4", "--sequences", "3", "--tokens", "8")
    models = ("--models", "/nowhere/model", "dummy-tiny")
    done = command("--device", "cpu", *models, "--setups", *setups, *sizes, "--out", str(out))
    assert done.returncode == 1, done.stdout + done.stderr
    table = out.read_text()
    assert "Not finished" not in table
    assert re.search(r"- .* commit [0-9a-f]{12}.*, device cpu\n- .*\n- Python .*vllm.*torch", table)

    found = cells(table, "Parity")
    assert [(row["model"], row["setup"]) for row in found] == [
        (model, setup) for model in ("/nowhere/model", "dummy-tiny") for setup in setups
    ]
    for row in found[: len(setups)]:
        assert row["result"] == FAIL
        assert "/nowhere/model" in row["note"], "the cause"
    for row in found[len(setups) :]:
        assert row["result"] == PASS, row
        assert row["alone: equal"] == "6 of 6"
        assert row["complete"] == "15 of 15"
        assert 0 < float(row["furthest from vLLM's values"].split(", ")[1]) <= TOLERANCE

    costs = cells(table, "Cost")
    assert [(row["setup"], row["batch"], row["temperature"]) for row in costs] == [
        (setup, "2", temperature) for setup in setups for temperature in ("0.0", "0.7")
    ]
    for row in costs:
        assert row["result"] == NOT_JUDGED
        for mode in ("unmeasured", "measured", "logprobs=20"):
            assert re.fullmatch(r"\d\.\d{3} \(\d\.\d{3} to \d+\.\d{3}\)", row[mode]), row
    assert len(list((tmp_path / "table").glob("*.log"))) == 4 * len(setups)
    assert not [entry.name for entry in Path("/proc").glob("[0-9]*") if str(tmp_path) in _prints_to(entry)]


def _prints_to(process: Path) -> str:
    """An engine's processes all print to its log."""
    try:
        return os.readlink(process / "fd/1")
    except OSError:
        return ""


def test_without_a_gpu_it_ends_with_one_line() -> None:
    done = command()
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "finds no GPU" in line
    assert "GPU_PYTHON" in line


def test_two_ranks_are_not_run_on_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    out = tmp_path / "table.md"
    report = Report(out, "cpu")
    options = argparse.Namespace(device="cuda", out=out)
    run(resolve("dummy-tiny", tmp_path, "cuda"), SETUPS["v1-tp2"], options, report, tmp_path)
    assert report.close() is False
    (row,) = cells(out.read_text(), "Parity")
    assert row["result"] == NOT_RUN
    assert row["note"] == "needs 2 GPUs, here are 1"


class Pretended:
    """A stand-in for an engine: answers a job with so many tokens, the first of each request being ``first``."""

    vocab = V

    def __init__(self, first: int = 1, log: str = "") -> None:
        self._first, self._log = first, log
        self.asked: list[Job] = []

    def ask(self, job: Job) -> Answer:
        self.asked.append(job)
        tokens = [[self._first, 7] for _ in job.prompts]
        logprobs = [[(-1.0, [-1.0] * 20)] * 2 for params in job.params if "logprobs" in params]
        return Answer(tokens, logprobs, 1.0, {})

    def text(self) -> str:
        return self._log


@pytest.mark.parametrize("first", [1, 2])
def test_nothing_measured_fails_with_the_warning_and_other_tokens_with_a_control(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("integration.gpu_vllm.parity._STORE_S", 0.1)
    plugin = Pretended(first, "corevital WARNING: nothing is measured: the kernel cannot run on cuda:0")
    engines: Any = Pair(Pretended(), plugin, tmp_path / "corevital.db")  # type: ignore[arg-type]
    row = parity(resolve("dummy-tiny", tmp_path, "cpu"), SETUPS["v1-async"], engines, 3, 2)
    assert row.result == FAIL
    assert row.cells["complete"] == "0 of 15"
    assert row.cells["furthest from vLLM's values"] == "surprisal, nan"
    assert "the kernel cannot run on cuda:0" in row.note
    assert row.cells["alone: equal"] == ("6 of 6" if first == 1 else "0 of 6")
    control = "without the plugin a second time 6 are equal, unmeasured requests 0"
    assert (control in row.note) == (first == 2)
    assert plugin.asked[0].how == "alone"
    assert plugin.asked[1].how == "held"


@pytest.mark.parametrize(
    ("ratios", "share", "result"),
    [
        ([0.991, 0.992, 0.993, 0.994, 0.995, 0.996], 0.1, PASS),
        ([0.991, 0.992, 0.993, 0.994, 0.995, 0.996], None, PASS),
        ([0.991, 0.992, 0.993, 0.994, 0.995, 0.996], 0.3, OPEN),
        ([0.95, 0.96, 0.97, 0.98, 0.985, 0.995], 0.1, OPEN),
        ([0.95, 0.96, 0.97, 0.98, 0.985, 0.989], 0.1, FAIL),
    ],
)
def test_a_ratio_fails_where_its_whole_interval_misses_the_goal(
    ratios: list[float], share: float | None, result: str
) -> None:
    assert judge(ratios, share) == result


def example(scale: float) -> tuple[Answer, Series]:
    """A token's logprobs as vLLM gives them, and its exact values."""
    logprobs = (scale * torch.randn(V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).log_softmax(0)
    probabilities, top = logprobs.exp(), logprobs.sort(descending=True).values[:20]
    exact = {
        "entropy": -(probabilities * logprobs).sum() / math.log(2),
        "surprisal": -logprobs[7] / math.log(2),
        "margin": top[0].exp() - top[1].exp(),
        "topk_mass": top[:10].exp().sum(),
    }
    series = Series(**{name: value.float().reshape(1).numpy() for name, value in exact.items()})
    return Answer([[7]], [[(float(logprobs[7]), top.tolist())]], 1.0, {}), series


@pytest.mark.parametrize("scale", [0.001, 1.0, 3.0, 30.0])
def test_exact_values_agree_with_logprobs_and_wrong_ones_do_not(scale: float) -> None:
    answer, series = example(scale)
    assert max(differences(answer, [series], V).values()) < 1e-5
    for name in ("surprisal", "margin", "topk_mass"):
        wrong = Series(**{**_values(series), name: getattr(series, name) + 0.01})
        assert differences(answer, [wrong], V)[name] > TOLERANCE
    low, high = entropy_bounds(answer.logprobs[0][0][1], V)
    for value in (low - 0.01, high + 0.01):
        wrong = Series(**{**_values(series), "entropy": series.entropy * 0 + value})
        assert differences(answer, [wrong], V)["entropy"] > TOLERANCE


def test_a_missing_value_or_series_does_not_agree() -> None:
    answer, series = example(1.0)
    assert math.isnan(differences(answer, [None], V)["surprisal"])
    without = Series(**{**_values(series), "surprisal": series.surprisal * math.nan})
    assert math.isnan(differences(answer, [without], V)["surprisal"])


def _values(series: Series) -> dict[str, Any]:
    return {name: getattr(series, name) for name in ("entropy", "surprisal", "margin", "topk_mass")}
