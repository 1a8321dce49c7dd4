"""Whose text is stored with COREVITAL_DB_CONTENT=1: outputs at high risk or with a flag, and in the store alone."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.harness.tokenizer_stand_in import StandIn, install

from corevital.frames.layout import ROW, SAMPLED, Source
from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.sender import FrameSender
from corevital_otel.counters import Counters
from corevital_otel.report import Health, Likeliest, RequestReport, Risk
from corevital_otel.service import output_texts
from corevital_otel.service.loop import Hub
from corevital_otel.service.output_texts import OutputTexts
from corevital_otel.settings import Settings
from corevital_otel.store.reader import StoreReader

Make = Callable[..., RequestReport]
HIGH = Risk(score=0.9, level="high")


@pytest.fixture
def tokenizers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The folder of a tokenizer that the stand-in reads."""
    install(monkeypatch, tmp_path, StandIn(lambda token: f"<{token}>", unfinished=[3]))
    return str(tmp_path)


def test_the_tokens_of_a_marked_output_and_its_alternatives(tokenizers: str, report: Make) -> None:
    likeliest = Likeliest(
        np.array([[1, 0], [2, -1], [9, 8]], np.int32),
        np.array([[np.log(0.75), np.log(0.25)], [0, 0], [np.log(0.5), -np.inf]], np.float32),
    )
    found = OutputTexts(Counters(), (tokenizers, None)).of(report(tokens=5, risk=HIGH, likeliest=likeliest))
    assert found is not None
    assert found.tokens == ("<0>", "<1>", "<2>", "", "<4>")
    assert found.total == 5
    assert [[(text, round(share, 4)) for text, share in place] for place in found.alternatives] == [
        [("<1>", 0.75), ("<0>", 0.25)],
        [("<2>", 1.0)],
        [("<9>", 0.5)],
    ]


def test_decoding_takes_a_share_of_the_time(tokenizers: str, report: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_texts, "_BURST_S", 0.0)
    counters = Counters()
    texts = OutputTexts(counters, (tokenizers, None))
    time.sleep(0.01)
    assert texts.of(report(tokens=5, risk=HIGH)) is None, "no time has come together"
    assert counters.get("corevital.telemetry.dropped", what="content", why="busy") == 1


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"risk": HIGH}, True),
        ({"health": Health(repetition_loop_detected=True)}, True),
        ({"health": Health(truncated=True)}, True),
        ({"health": Health(traffic_shifted=True)}, False),
        ({"risk": Risk(score=0.5, level="medium")}, False),
        ({"risk": HIGH, "tokens": 0}, False),
    ],
)
def test_only_high_risk_and_flags_are_stored(
    tokenizers: str, report: Make, changes: dict[str, Any], stored: bool
) -> None:
    counters = Counters()
    assert (OutputTexts(counters, (tokenizers, None)).of(report(**changes)) is not None) is stored
    assert counters.get("corevital.telemetry.dropped") == 0


def test_the_tokenizer_is_that_of_the_engine_that_reported(tokenizers: str, report: Make) -> None:
    texts = OutputTexts(Counters(), ("", None))
    ended = replace(report(risk=HIGH).outcome, tokenizer=(tokenizers, None))
    assert texts.of(report(risk=HIGH)) is None
    assert texts.of(report(risk=HIGH, outcome=ended)) is not None


def test_without_a_tokenizer_it_is_logged_once_and_counted(
    tmp_path: Path, report: Make, logged: Callable[[], list[logging.LogRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # importing it fails
    counters = Counters()
    texts = OutputTexts(counters, (str(tmp_path), None))
    for _ in range(3):
        assert texts.of(report(risk=HIGH)) is None
    assert counters.get("corevital.telemetry.dropped", what="content", why="no_tokenizer") == 3
    (line,) = [record.message for record in logged()]
    assert line.endswith("tokenizers is not installed. COREVITAL_DB_CONTENT=1 stores no text of its outputs")


def test_an_error_loses_the_text_and_not_the_report(
    tokenizers: str, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COREVITAL_RAISE", raising=False)
    monkeypatch.setattr(StandIn, "decode_batch", lambda *_, **__: 1 / 0)
    counters = Counters()
    likeliest = Likeliest(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32))
    assert OutputTexts(counters, (tokenizers, None)).of(report(risk=HIGH, likeliest=likeliest)) is None
    assert counters.get("corevital.telemetry.dropped", what="content", why="fault") == 1


def test_slow_decoding_ends(tokenizers: str, report: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_texts, "_MOST_S", 0.0)
    found = OutputTexts(Counters(), (tokenizers, None)).of(report(tokens=1000, risk=HIGH))
    assert found is not None
    assert (len(found.tokens), found.total) == (128, 1000)


@pytest.mark.parametrize("setting", [True, False])
def test_a_hub_stores_the_text_of_a_request_with_a_nan(tokenizers: str, tmp_path: Path, setting: bool) -> None:
    path = tmp_path / "corevital.db"
    hub = Hub(Settings(db=path, db_content=setting), "m", tokenizer=(tokenizers, None))
    hub.start()
    worker, stamps = FrameSender(Source("vllm", "v1", "raw")), []
    for number in range(2):
        stamp = hub.admit(Admitted(request_id=f"r{number}", engine_id="e", sequence=0, operation="chat",
                                   model="m", arrival_ns=time.time_ns(), prompt_tokens=1))  # fmt: skip
        assert stamp is not None
        rows, sampled = np.zeros(40, ROW), np.zeros(40, SAMPLED)
        for table in (rows, sampled):
            table["key"], table["index"] = stamp.key, range(40)
        rows["vocab"], rows["topk_ids"], rows["topk_logprobs"] = 100, np.arange(20), np.log(np.linspace(0.5, 0.01, 20))
        rows["nan_count"][7] = number
        worker.send(stamp.server, rows, sampled)
        stamps.append(stamp)
    for stamp in stamps:
        hub.finish(stamp.key, Finished(reason="stop", token_ids=tuple(range(40)), end_ns=time.time_ns()))
    assert hub.drain(10)
    worker.close()
    hub.close()
    stored = {one.request_id: StoreReader(path).get_span(one.span_id) for one in StoreReader(path).list_reports()}
    plain, flagged = stored["r0"], stored["r1"]
    assert plain is not None
    assert flagged is not None
    assert plain.content is None
    if not setting:
        assert flagged.content is None
        return
    assert flagged.content is not None
    assert flagged.content.tokens == tuple("" if one == 3 else f"<{one}>" for one in range(40))
    assert len(flagged.content.alternatives) == 40
    assert flagged.content.alternatives[39][0] == ("<0>", 0.5)
    assert len(flagged.content.alternatives[0]) == 5
    assert "<1>" not in str(flagged.summary)
