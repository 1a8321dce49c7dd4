"""``vllm run-batch``: a hundred mixed requests from a file, each sequence one span and one row. It knows only chats."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from integration.harness.frontends import checks
from integration.harness.frontends.checks import Outcome, Reference, gather
from integration.harness.frontends.http_client import body, path, take
from integration.harness.frontends.leftovers import Trail
from integration.harness.frontends.mixed import Answer, mixed
from integration.harness.runners import python_path
from integration.harness.vllm_server import MODEL, MODEL_NAME
from tests.harness.collector import collector
from tests.harness.processes import BIN, Group, environment

pytestmark = pytest.mark.engine


def answers(file: Path) -> list[Answer]:
    found = []
    for line in file.read_text().splitlines():
        data = json.loads(line)
        answer = Answer(data["custom_id"])
        reply = data["response"]
        if data.get("error") or reply["status_code"] != 200:
            answer.refused = json.dumps([reply, data.get("error")])
        else:
            take(answer, reply["body"])
        found.append(answer)
    return found


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("batch")
    requests = [replace(request, chat=True) for request in mixed(aborts=False, streams=False)]
    lines = [
        {"custom_id": request.name, "method": "POST", "url": path(request), "body": body(request)}
        for request in requests
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trail = Trail()
    command = [str(BIN / "vllm"), "run-batch", "-i", "in.jsonl", "-o", "out.jsonl", "--model", str(MODEL)]
    command += ["--served-model-name", MODEL_NAME, "--max-model-len", "2048", "--max-num-seqs", "32"]
    command += ["--enforce-eager", "--dtype", "float32", "--logits-processors", "corevital"]
    with collector(folder) as rotel:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc, "PYTHONPATH": python_path(), **trail.env}
        batch = Group(command, environment(env), folder, folder / "batch.log")
        trail.follow(batch)
        try:
            assert batch.process.wait(400) == 0, batch.text()[-4000:]
            assert trail.wait_gone(10) == []
        finally:
            batch.stop()
        return gather(requests, answers(folder / "out.jsonl"), rotel.sink, [folder / "runs/corevital.db"])


def test_rows_spans_and_sequences_are_the_same(outcome: Outcome) -> None:
    checks.check_exactly_once(outcome)
    checks.check_tokens_are_all_observed(outcome)


def test_ends_and_arguments_are_those_of_the_caller(outcome: Outcome) -> None:
    checks.check_ends(outcome)
    checks.check_arguments(outcome)


def test_tokens_are_those_of_the_engine_alone(outcome: Outcome, reference: Callable[[str], Reference]) -> None:
    checks.check_same_texts(outcome, reference("v1"))
