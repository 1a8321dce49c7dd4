"""The rules are valid. Each alert is complete, is tested to fire and to stay quiet, and has a usable runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from tests.dashboards.tools import DASHBOARDS, FILES, ROOT, RULE_TESTS, RULES, known_series, run, series_in, unparsable
from typer.testing import CliRunner

from corevital_otel.cli.app import app

GROUPS = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
ALERTS: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
NAMES = sorted({alert["alert"] for alert in ALERTS})
TESTS = [test for path in RULE_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
CASES = [case for test in TESTS for case in test.get("alert_rule_test", ())]
RUNBOOKS = {path.stem: path.read_text() for path in sorted((DASHBOARDS / "runbooks").glob("*.md"))}


def test_promtool_accepts_the_rules() -> None:
    done = run("promtool", "check", "rules", *RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.name)
def test_promtools_tests_of_the_alerts_pass(path: Path) -> None:
    done = run("promtool", "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_notices_a_wrong_threshold(tmp_path: Path) -> None:
    for path in RULES:
        (tmp_path / path.name).write_text(path.read_text().replace("> 0.05", "> 0.5"))
    (tmp_path / "tests").mkdir()
    name = "model.test.yml"
    (tmp_path / "tests" / name).write_text((DASHBOARDS / "prometheus/tests" / name).read_text())
    done = run("promtool", "test", "rules", tmp_path / "tests" / name)
    assert done.returncode != 0
    assert "alertname: CorevitalLoopShareHigh, time: 45m" in done.stdout + done.stderr


EACH_ALERT = pytest.mark.parametrize(
    "alert", ALERTS, ids=lambda alert: "-".join((alert["alert"], *alert["labels"].values()))
)


def labels_when_fired(name: str) -> list[dict[str, str]]:
    return [fires["exp_labels"] for case in CASES if case["alertname"] == name for fires in case["exp_alerts"]]


@EACH_ALERT
def test_each_alert_is_tested_to_fire_and_to_stay_quiet(alert: dict[str, Any]) -> None:
    cases = [case for case in CASES if case["alertname"] == alert["alert"]]
    fired = labels_when_fired(alert["alert"])
    assert [labels for labels in fired if alert["labels"].items() <= labels.items()], "never fires"
    assert [case for case in cases if not case["exp_alerts"]], "is never quiet"


@EACH_ALERT
def test_each_alert_is_complete(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Corevital([A-Z][a-z]*|NaN)+", alert["alert"])
    severity = alert["labels"]["severity"]
    assert severity in ("critical", "warning", "info") or (alert["alert"], severity) == ("CorevitalWatchdog", "none")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert len(notes["summary"]) < 120
    assert notes["description"].endswith(".")
    assert urlsplit(notes["dashboard_url"].split("?")[0]).path.removeprefix("/d/") in FILES

    runbook = urlsplit(notes["runbook_url"])
    assert runbook.path.removeprefix("/d/") == "corevital-runbooks"
    (number,) = parse_qs(runbook.query)["viewPanel"]
    (panel,) = [panel for panel in FILES["corevital-runbooks"]["panels"] if panel["id"] == int(number)]
    assert panel["title"] == alert["alert"]
    assert f"Severity: {alert['labels']['severity']}" in panel["options"]["content"] or "window" in alert["labels"]


def test_links_name_variables_that_the_dashboards_have() -> None:
    for alert in ALERTS:
        link = urlsplit(re.sub(r"\{\{.*?\}\}", "x", alert["annotations"]["dashboard_url"]))
        variables = {variable["name"] for variable in FILES[link.path.removeprefix("/d/")]["templating"]["list"]}
        assert {name.removeprefix("var-") for name in parse_qs(link.query)} <= variables


def test_recordings_are_named_by_level_metric_and_operations() -> None:
    for group in GROUPS:
        for rule in group["rules"]:
            if "record" in rule:
                assert re.fullmatch(r"(model|instance):[a-z_]+:[a-z0-9_]+", rule["record"])


def test_every_series_of_a_rule_exists() -> None:
    known = known_series()
    for group in GROUPS:
        for rule in group["rules"]:
            found = series_in(rule["expr"])
            assert found, rule
            assert found <= known, rule


def test_every_recording_is_used() -> None:
    used = "".join(rule["expr"] for group in GROUPS for rule in group["rules"])
    used += "".join(str(made["panels"]) for made in FILES.values())
    for group in GROUPS:
        for rule in group["rules"]:
            assert "alert" in rule or re.search(rf"{re.escape(rule['record'])}\b", used), rule["record"]


def test_alerts_runbooks_and_lines_in_the_docs_match() -> None:
    assert sorted(RUNBOOKS) == NAMES
    docs = (ROOT / "docs/operate/dashboards.md").read_text()
    assert sorted(re.findall(r"^\| `(Corevital\w+)` \|", docs, re.MULTILINE)) == NAMES


@pytest.mark.parametrize("name", RUNBOOKS)
def test_a_runbook_can_be_followed(name: str, tmp_path: Path) -> None:
    text = RUNBOOKS[name]
    assert text.startswith(f"# {name}\n")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == ["What it means", "How to look", "What to do", "How to silence it"]
    silence = re.search(rf"silence add alertname={name} (\w+)=\S+ --duration=", text)
    assert silence is not None
    assert all(silence[1] in labels for labels in labels_when_fired(name)), "it would silence nothing"
    queries = [line for block in re.findall(r"```promql\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert queries
    assert not unparsable(queries, tmp_path)
    assert set().union(*map(series_in, queries)) <= known_series()


@pytest.mark.parametrize(
    "call", sorted({call for text in RUNBOOKS.values() for call in re.findall(r"^corevital (.*)$", text, re.MULTILINE)})
)
def test_a_runbooks_corevital_command_is_valid(call: str) -> None:
    commands = re.match(r"(?:[a-z]+ ?)+", call)
    assert commands is not None
    shown = CliRunner().invoke(app, [*commands[0].split(), "--help"])
    assert shown.exit_code == 0
    for option in re.findall(r"--[\w-]+", call):
        assert option in shown.output
