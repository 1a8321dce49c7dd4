"""Reasoning, answers, calls of tools and forced tokens, on a real vLLM with a reasoning parser and a JSON grammar.

The model is the demo's; what it lacks of one that reasons is in :mod:`integration.harness.marks`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from integration.harness.marks import MARKS, marked_model
from integration.harness.runners import python_path
from integration.harness.vllm_server import MODEL_NAME, Vllm, vllm

from corevital_otel.store.reader import StoredReport, StoreError, StoreReader

pytestmark = pytest.mark.engine

START, END, CALL, CALLED = MARKS.values()
SCHEMA = {
    "type": "object",
    "properties": {
        "fruit": {"type": "string", "enum": ["apples", "apricots", "pears"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["fruit", "count"],
    "additionalProperties": False,
}
JSON = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
MASKED = -9000.0
"""vLLM's answers have -9999 as the log-probability of a masked token."""


@dataclass
class Served:
    """The server, and what it stored."""

    server: Vllm
    database: Path

    def chat(self, name: str, *, say: str = "", **given: Any) -> dict[str, Any]:
        """The first choice of an answer."""
        body = {"messages": [{"role": "user", "content": "What is 12 + 7?"}], **given}
        return self.send("/v1/chat/completions", name, say, body)

    def send(self, path: str, name: str, say: str, body: dict[str, Any]) -> dict[str, Any]:
        asked = {"model": MODEL_NAME, "temperature": 0, "max_tokens": 60, **body}
        if say:
            asked["vllm_xargs"] = {"say": say}
        answer = httpx.post(self.server.url + path, json=asked, headers={"X-Request-Id": name}, timeout=120)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["choices"][0])

    def row(self, name: str) -> StoredReport:
        """The row of a request, as soon as it is there."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                found = StoreReader(self.database).get_whole(name)
            except StoreError:
                found = []
            if found:
                return found[0]
            time.sleep(0.2)
        raise TimeoutError(f"no row of {name}\n{self.server.text()[-3000:]}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("parts")
    arguments = (
        "--logits-processors", "integration.harness.marks:SaysMarks", "corevital", "--dtype", "float32",
        "--reasoning-parser", "deepseek_r1", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        "--structured-outputs-config.backend", "xgrammar",
        "--structured-outputs-config.disable_any_whitespace", "true",
    )  # fmt: skip
    env = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(),
           "COREVITAL_CAPTURE": "full", "COREVITAL_HTTP": "none"}  # fmt: skip
    with vllm(folder, *arguments, env=env, plugin=False, model=(MODEL_NAME, marked_model(folder / "model"))) as server:
        yield Served(server, folder / "runs/corevital.db")


def check_part(row: StoredReport, name: str, at: list[int]) -> None:
    """A part's tokens and means are those of the series at these output indices, none of which is forced."""
    found = row.summary
    assert found[f"corevital.{name}.tokens"] == len(at)
    assert row.series is not None
    for what, values in (("entropy", row.series.entropy[at]), ("surprisal", row.series.surprisal[at])):
        assert found[f"corevital.{name}.{what}.mean"] == pytest.approx(values.mean(), rel=1e-4, abs=1e-6)


def test_reasoning_and_answer_are_measured_apart(served: Served) -> None:
    choice = served.chat("reasons", say=f"12:{END}", ignore_eos=True)
    message = choice["message"]
    assert message.get("reasoning") or message.get("reasoning_content")
    assert message["content"]
    row = served.row("reasons")
    found = row.summary
    assert found["gen_ai.usage.reasoning.output_tokens"] == 12
    check_part(row, "reasoning", list(range(12)))
    check_part(row, "answer", list(range(13, 60)))
    assert found["corevital.risk.segment"] == "answer"
    assert row.series is not None
    assert found["corevital.assessed.entropy.max"] == pytest.approx(row.series.entropy[13:].max(), rel=1e-5)
    assert found["corevital.entropy.mean"] == pytest.approx(row.series.entropy.mean(), rel=1e-4), "of the whole"
    assert (found["corevital.tokens.observed"], "corevital.incomplete" in found) == (60, False)
    assert "corevital.tokens.forced" not in found


def test_tokens_that_a_json_grammar_forces_do_not_count_as_certain(served: Served) -> None:
    choice = served.chat("json", say=f"2:{END}", response_format=JSON, logprobs=True, top_logprobs=2)
    answer = json.loads(choice["message"]["content"])
    assert answer["fruit"] in SCHEMA["properties"]["fruit"]["enum"]  # type: ignore[index]
    steps = choice["logprobs"]["content"]
    forced = [i for i, step in enumerate(steps) if min(top["logprob"] for top in step["top_logprobs"]) < MASKED]
    row = served.row("json")
    found, series = row.summary, row.series
    assert series is not None
    assert len(steps) == len(series) == found["corevital.tokens.observed"]
    assert min(forced) > 2, "the grammar begins after the reasoning"
    assert len(forced) >= 5
    assert found["corevital.tokens.forced"] == len(forced)
    assert not series.entropy[forced].any()
    chosen = [i for i in range(3, len(steps)) if i not in forced]
    assert 0 < len(chosen) < len(steps) - 3
    check_part(row, "reasoning", [0, 1])
    assert found["corevital.answer.tokens"] == len(steps) - 3
    assert found["corevital.answer.entropy.mean"] == pytest.approx(series.entropy[chosen].mean(), rel=1e-4)
    assert found["corevital.assessed.margin.mean"] == pytest.approx(series.margin[chosen].mean(), rel=1e-4)
    every = np.delete(series.entropy, forced)
    assert found["corevital.entropy.mean"] == pytest.approx(every.mean(), rel=1e-4)
    assert found["corevital.entropy.sum"] == pytest.approx(series.entropy.sum(), rel=1e-4)


def test_a_grammar_of_a_completion_forces_tokens_too_and_it_has_no_parts(served: Served) -> None:
    body = {"prompt": "What is 12 + 7?\n", "structured_outputs": {"json": SCHEMA}}
    served.send("/v1/completions", "grammar", f"2:{END}", body)  # vLLM begins with the grammar after the reasoning
    found = served.row("grammar").summary
    assert found["corevital.tokens.forced"] >= 1
    assert not [name for name in found if ".answer." in name or ".reasoning." in name or ".assessed." in name]
    assert "corevital.risk.segment" not in found


def test_calls_of_tools_are_measured_apart(served: Served) -> None:
    say = f"6:{END},10:{CALL},40:{CALLED}"
    served.chat("calls", say=say, ignore_eos=True, tools=TOOLS)
    row = served.row("calls")
    check_part(row, "reasoning", list(range(6)))
    check_part(row, "tool_call", list(range(11, 40)))
    check_part(row, "answer", [*range(7, 10), *range(41, 60)])
    assert row.summary["corevital.risk.segment"] == "tool_call", "the longer one"


def test_an_answer_that_is_cut_off_while_it_reasons_is_assessed_whole(served: Served) -> None:
    served.chat("thinks", say=f"0:{START}", ignore_eos=True)
    found = served.row("thinks").summary
    assert found["corevital.reasoning.tokens"] == 59
    assert not {"corevital.answer.tokens", "corevital.risk.segment"} & found.keys()
    assert "corevital.risk_score" in found
