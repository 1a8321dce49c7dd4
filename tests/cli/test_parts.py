"""A request whose reasoning, answer and forced tokens are known, as the commands show and use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corevital_otel.cli.tables import read
from corevital_otel.counters import Counters
from corevital_otel.report import Assessed, Features, Part, Segments
from corevital_otel.risk.table import Runs
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

ANSWER = Features(tokens=2, entropy_mean=0.125, entropy_max=0.25, entropy_sum=0.25, surprisal_mean=0.0625)


@pytest.fixture
def store(tmp_path: Path, report: Callable[..., Any]) -> Path:
    plain = report(request_id="plain")
    features = dataclasses.replace(plain.features, forced=1)
    answer = Part(tokens=2, entropy_mean=ANSWER.entropy_mean, surprisal_mean=ANSWER.surprisal_mean)
    parts = Segments(reasoning=Part(tokens=7), answer=answer, assessed=Assessed(segment="answer", features=ANSWER))
    writer = StoreWriter(tmp_path / "runs/corevital.db", 36500, 100, Counters())
    writer.put(record_of(plain, SpanIds("1" * 32, "1" * 16)))
    parted = dataclasses.replace(report(request_id="parted"), features=features, segments=parts)
    writer.put(record_of(parted, SpanIds("2" * 32, "2" * 16)))
    writer.close(10)
    return tmp_path / "runs/corevital.db"


def test_show_has_a_line_for_each_part(command: Callable[..., Any], store: Path) -> None:
    lines = {line.split("  ")[0]: line for line in command("show", "parted").output.splitlines()}
    assert lines["reasoning"].split("  ")[-1].strip() == "7 tokens"
    expected = "2 tokens, entropy 0.125 bits, surprisal 0.0625 bits; the risk is of this part"
    assert lines["answer"].split("  ")[-1].strip() == expected
    assert "tool calls" not in lines
    assert "1 tokens were the only ones allowed" in lines["forced"]
    plain = command("show", "plain").output
    assert not [name for name in ("reasoning", "answer", "forced") if f"\n{name} " in plain]


def test_show_has_all_digits_of_a_seed(command: Callable[..., Any], tmp_path: Path, report: Callable[..., Any]) -> None:
    seeded = report(admitted=dataclasses.replace(report().admitted, seed=1234567890, temperature=0.5))
    writer = StoreWriter(tmp_path / "runs/corevital.db", 36500, 100, Counters())
    writer.put(record_of(seeded, SpanIds("3" * 32, "3" * 16)))
    writer.close(10)
    shown = command("show", "chatcmpl-1").output
    assert "seed 1234567890" in shown
    assert "temperature 0.5" in shown


def test_calibrate_reads_the_features_that_the_risk_is_of(store: Path) -> None:
    table = read(store)
    runs = dict(zip(table["request_id"], Runs.of(table), strict=True))
    assert (runs["parted"].tokens, runs["parted"].entropy_max, runs["parted"].margin_mean) == (2, 0.25, None)
    assert runs["plain"].entropy_max == 1.0
