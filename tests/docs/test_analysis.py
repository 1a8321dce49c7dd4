"""The examples of docs/operate/analysis.md run unchanged, and their results are right."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corevital_otel.cli.app import app
from corevital_otel.counters import Counters
from corevital_otel.report import Health, RequestReport, Risk, Series
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.writer import StoreWriter

PAGE = Path(__file__).resolve().parents[2] / "docs/operate/analysis.md"
SCORES = (0.1, 0.9, 0.3, 0.8)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def results(
    tmp_path: Path,
    report: Callable[..., RequestReport],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[list[str], dict[str, Any]]:
    """What the commands printed, and what the Python names."""
    writer = StoreWriter(tmp_path / "runs/corevital.db", 30, 1024, Counters())
    for number, score in enumerate(SCORES):
        values = np.roll(np.array([5, 1, 2, 3], np.float32), number)
        made = report(
            request_id=f"r{number}",
            model="large" if number % 2 else "small",
            end_ns=time.time_ns() - number * 3600 * 10**9,
            risk=Risk(score=score, level="high" if score > 0.7 else "low", factors=()),
            health=Health(truncated=number == 3),
            series=Series(entropy=values, surprisal=values, margin=values, topk_mass=values),
        )
        made = replace(
            made, admitted=replace(made.admitted, tags=(("tenant:acme", "beta") if number else ("tenant:b",)))
        )
        writer.put(record_of(made, SpanIds(f"{number + 1:032x}", f"{number + 1:016x}")))
    writer.close(10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COREVITAL_DB", raising=False)
    shell = "corevital() { printf '%s\\0' \"$@\"; printf '\\1\\0'; }\n" + "".join(blocks("sh"))
    arguments = subprocess.run(["bash", "-ec", shell], capture_output=True, text=True, check=True).stdout
    printed = []
    for command in arguments.split("\1\0")[:-1]:
        app(command.split("\0")[:-1], standalone_mode=False)
        output = capsys.readouterr()
        assert output.err == ""
        printed.append(output.out)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - text of this repository
    return printed, names


def test_every_example_runs_and_is_right(results: tuple[list[str], dict[str, Any]]) -> None:
    printed, names = results
    assert [row[:2] for row in names["risky"]] == [("large", 2), ("small", 2)]
    assert [row[2:] for row in names["risky"]] == [pytest.approx((0.85, 1, 0.25)), pytest.approx((0.2, 0, 0.25))]
    assert names["flagged"] == [("truncated", 1)]
    assert names["peaks"] == [(f"r{number}", number) for number in range(4)]
    assert list(names["riskiest"]["request_id"]) == ["r1", "r3", "r2", "r0"]
    assert list(names["truncated"]["request_id"]) == ["r3"]
    assert names["by_hour"]["count"].sum() == 4
    assert sorted(names["same"]["request_id"]) == sorted(names["lines"]["request_id"]) == ["r0", "r1", "r2", "r3"]
    levels, high, mean, flags, tenants = printed[3:]
    assert [line.split() for line in levels.splitlines()[1:]] == [["large", "high", "2"], ["small", "low", "2"]]
    assert {line.split(",")[0] for line in high.splitlines()[1:]} == {"r1", "r3"}
    assert json.loads(mean) == [{"entropy": 0.5}]
    stored = StoreReader(Path("runs/corevital.db")).list_reports()
    counted = Counter(flag for row in stored for flag in row.flags)
    assert {tuple(line.split()) for line in flags.splitlines()[1:]} == {(flag, str(n)) for flag, n in counted.items()}
    tokens = {row.output_tokens for row in stored}
    assert len(tokens) == 1
    (each,) = tokens
    assert tenants.splitlines()[1:] == [f"tenant:acme,3,{3 * each},0.667,0.0", f"tenant:b,1,{each},0.0,0.0"]
