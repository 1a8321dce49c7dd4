"""The commands of the runbooks and of the pages for on-call and rollout: each has its forms, and silences match."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.dashboards.test_rules import RUNBOOKS, labels_when_fired
from tests.dashboards.tools import ROOT, unparsable
from typer.testing import CliRunner

from corevital_otel.cli.app import app

ROLLOUT, ON_CALL = ((ROOT / f"docs/operate/{name}.md").read_text() for name in ("rollout", "on-call"))
INSIDE = re.compile(r"corevital |promtool |amtool |nvidia-smi|curl .*localhost:8000")
"""What runs where vLLM, Prometheus or Alertmanager runs."""


def commands(text: str) -> list[str]:
    """The lines of the blocks of shell commands."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def bare(command: str) -> str:
    """A command without where it runs, and without what differs there: paths of the Prometheus Operator, the author."""
    command = re.sub(r"^(docker exec (-it )?[\w-]+|kubectl exec .*? --) ", "", command)
    command = re.sub(r"/etc/(\w+)/config_out/\w+\.env\.yaml", r"/etc/\1/\1.yml", command)
    return command.replace('--author="$USER" ', "")


@pytest.mark.parametrize("name", RUNBOOKS)
def test_each_command_of_a_runbook_has_its_forms(name: str) -> None:
    lines = commands(RUNBOOKS[name])
    plain = {line for line in lines if INSIDE.match(line)}
    assert plain, "a silence at least"
    for kind in ("docker exec ", "kubectl exec "):
        forms = {bare(line) for line in lines if line.startswith(kind)}
        assert plain <= forms, kind
    for line in lines:
        if line.startswith("kubectl exec"):
            assert re.match(r"kubectl exec (-it )?--namespace \S+ \S+ --container \S+ -- ", line), line


def test_commands_in_the_text_have_their_forms_on_the_page() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| `([^`]+)` \|$", ON_CALL, re.MULTILINE)
    for plain, docker, kubectl in rows:
        short = plain.removeprefix("amtool ")
        assert docker.startswith("docker exec ")
        assert docker.endswith(short), docker
        assert kubectl.startswith("kubectl exec ")
        assert kubectl.endswith(short), kubectl
    known = {plain for plain, _, _ in rows}
    for name, text in RUNBOOKS.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for command in re.findall(r"`((?:nvidia-smi -|corevital d|amtool alert)[^`]*)`", prose):
            in_a_block = command in commands(text)
            assert in_a_block or command in known, f"{name}: {command}"


@pytest.mark.parametrize("line", [line for line in commands(ROLLOUT) if "silence add" in line])
def test_a_silence_of_the_rollout_matches_its_alert(line: str) -> None:
    matchers = dict(re.findall(r" '?(\w+)=~?([\w.:*]+)'?(?= )", line.split("silence add", 1)[1]))
    name = matchers.pop("alertname")
    fired = labels_when_fired(name)
    assert fired
    assert matchers
    assert all(re.fullmatch(value, labels[label]) for labels in fired for label, value in matchers.items())
    in_kubernetes = bool(re.fullmatch(matchers["job"], "llm/corevital-vllm"))
    assert in_kubernetes == line.startswith("kubectl exec"), "a job is NAMESPACE/PODMONITOR there"
    assert re.search(r" --duration=\d+d ", line)
    assert "--comment='" in line


def test_queries_of_the_rollout_parse(tmp_path: Path) -> None:
    blocks = re.findall(r"```promql\n(.*?)```", ROLLOUT, re.DOTALL)
    queries = [line for block in blocks for line in block.splitlines()]
    assert len(queries) == 2
    assert not unparsable(queries, tmp_path)


@pytest.mark.parametrize(
    "call", sorted(set(re.findall(r"`corevital ([a-z].*?)`", ROLLOUT + ON_CALL))), ids=lambda call: call
)
def test_a_corevital_command_is_valid(call: str) -> None:
    words = re.match(r"(?:[a-z]+ ?)+", call)
    assert words is not None
    shown = CliRunner().invoke(app, [*words[0].split(), "--help"])
    assert shown.exit_code == 0
    for option in re.findall(r"--[\w-]+", call):
        assert option in shown.output
