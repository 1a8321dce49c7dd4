"""At a terminal of 80 columns."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import Features, Health, RequestReport
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]

IDS = ("chatcmpl-a80331ac0ed668af", "chatcmpl-a80331ac1ed668af", "cmpl-b80331ac0ed668afb80331ac0ed668af")
MANY = "SELECT request_id, created_at_utc, model, finish_reason, prompt_tokens, trace_id, span_id FROM reports"


@pytest.fixture
def filled(tmp_path: Path, report: Make) -> Path:
    path = tmp_path / "runs/corevital.db"
    writer = StoreWriter(path, 30, 1024, Counters())
    health = Health(repetition_loop_detected=True, loop_onset=20, loop_period=4, truncated=True)
    features = Features(tokens=60, high_entropy_steps=2)
    for number, request_id in enumerate(IDS, 1):
        item = report(tokens=60, request_id=request_id, health=health, features=features, end_ns=time.time_ns())
        writer.put(record_of(item, SpanIds(f"{number:032x}", f"{number:016x}")))
    writer.close(10)
    return path


def at_terminal(folder: Path, *arguments: str, status: int = 0) -> list[str]:
    """Lines of the output as a terminal of 80 columns gets them."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80", "LINES": "50"}
    command = [sys.executable, "-m", "corevital_otel.cli", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    output = b""
    while True:
        try:
            output += os.read(ours, 65536)
        except OSError:  # Linux: the last writer has closed
            break
    os.close(ours)
    assert process.wait(30) == status, output
    return re.sub(r"\x1b\[[0-9;]*m", "", output.decode()).splitlines()  # NO_COLOR leaves bold and dim


def test_each_request_is_one_line_with_an_id_that_show_takes(filled: Path, tmp_path: Path) -> None:
    lines = at_terminal(tmp_path, "spans")
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "model tiny"
    shown = [line.split()[2] for line in lines[2:]]
    assert shown == ["cmpl-b80331ac", "chatcmpl-a80331ac1", "chatcmpl-a80331ac0"]
    assert all("loop, truncated" in line for line in lines[2:])
    assert any(IDS[1] in line for line in at_terminal(tmp_path, "show", "chatcmpl-a80331ac1"))


def test_the_charts_mark_the_loop_and_the_unsure_steps(filled: Path, tmp_path: Path) -> None:
    text = "\n".join(at_terminal(tmp_path, "show", IDS[0]))
    assert "2 high-entropy steps" in text
    assert "▲ high-entropy step   │ the loop starts, at token 20" in text
    charts = text[text.index("entropy (bits)") :]
    assert "▲" in charts[: charts.index("surprisal")]
    assert "▲" not in charts[charts.index("surprisal") :]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "status", "names"),
    [
        (["slo", "--since", "1h"], 1, ["objective", "budget used", "verdict"]),
        (["compare", "runs/corevital.db", "runs/corevital.db"], 0, ["flag", "interval", "change"]),
        (["query", MANY], 0, ["request_id", "created_at_utc", "finish_reason"]),
    ],
)
def test_a_table_that_is_too_wide_is_printed_row_by_row_and_cuts_nothing(
    filled: Path, arguments: list[str], status: int, names: list[str]
) -> None:
    lines = at_terminal(filled.parents[1], *arguments, status=status)
    assert "…" not in "".join(lines)
    for name in names:
        assert [line for line in lines if line.startswith(f"{name}  ")], name


def test_a_table_that_fits_is_one(filled: Path) -> None:
    lines = at_terminal(filled.parents[1], "query", "SELECT model, count(*) AS requests FROM reports GROUP BY model")
    assert [line.split() for line in lines if line.strip()] == [["model", "requests"], ["tiny", "3"]]
