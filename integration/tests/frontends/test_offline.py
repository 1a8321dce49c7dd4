"""Offline ``LLM``: a hundred mixed requests, each sequence one span and one row."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
from integration.harness.frontends import checks
from integration.harness.frontends.checks import Outcome, Reference, gather
from integration.harness.frontends.leftovers import Trail
from integration.harness.frontends.mixed import Answer
from integration.harness.frontends.offline_client import requests
from integration.harness.runners import python_path
from tests.harness.collector import collector
from tests.harness.processes import Group, environment

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("offline")
    trail = Trail()
    with collector(folder) as rotel:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc, "PYTHONPATH": python_path(), **trail.env}
        command = [sys.executable, "-m", "integration.harness.frontends.offline_client", "answers.json", "corevital"]
        offline = Group(command, environment(env), folder, folder / "offline.log")
        trail.follow(offline)
        try:
            assert offline.process.wait(400) == 0, offline.text()[-4000:]
            assert trail.wait_gone(10) == []
        finally:
            offline.stop()
        answers = [Answer.from_json(data) for data in json.loads((folder / "answers.json").read_text())]
        return gather(requests(), answers, rotel.sink, [folder / "runs/corevital.db"])


def test_rows_spans_and_sequences_are_the_same(outcome: Outcome) -> None:
    checks.check_exactly_once(outcome)
    checks.check_tokens_are_all_observed(outcome)


def test_ends_and_arguments_are_those_of_the_caller(outcome: Outcome) -> None:
    checks.check_ends(outcome)
    checks.check_arguments(outcome)


def test_tokens_are_those_of_the_engine_alone(outcome: Outcome, reference: Callable[[str], Reference]) -> None:
    checks.check_same_texts(outcome, reference("v1"))
