"""From a model that goes wrong to the notified operator: real vLLM, Prometheus, Alertmanager, our rules and routes.

One server under plain traffic, then loops, NaN (by a processor of the tests) and truncated answers, then plain again.
Everything is sixty times as fast as in the files: see :mod:`integration.harness.alerting`.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import yaml
from dashboards.source.expressions import expressions
from integration.harness.alerting import ROUTES, RULES, Notice, shortened, shortened_query, shortened_rules
from integration.harness.prometheus import UNPACKED
from integration.harness.replicas import WATCHDOG
from integration.harness.vllm_server import MODEL_NAME
from integration.harness.watched import Watched, until, watched
from tests.harness.processes import ROOT

PLAIN_S = 40.0
MUST_FIRE = {
    "CorevitalNaNLogits": "critical",
    "CorevitalLoopShareHigh": "warning",
    "CorevitalTruncationRising": "warning",
    "CorevitalFaultBudgetBurn": "critical",
    "CorevitalStuckInLoops": "critical",
}
MAY_FIRE = {"CorevitalTrafficShifted", "CorevitalWarningShareRising", "CorevitalHighRiskShareRising"}
"""May fire: bad requests change the traffic too, loops collapse distributions, perhaps for long enough, and the demo
model's loops of more than a few words are at medium to high risk: it guesses where they go on."""
LASTING = {"CorevitalFaultBudgetBurn"}
"""Its longest windows are days: the test would wait minutes for it to resolve."""


@dataclass
class Story:
    """What was seen, stage by stage."""

    watched: Watched
    quiet: set[str] = field(default_factory=set)
    told_while_plain: list[Notice] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with watched(tmp_path_factory.mktemp("alerting")) as here:
        traffic, manager = here.traffic, here.alertmanager
        story = Story(here)
        traffic.mix = {"plain": 5}
        until(lambda: here.prometheus.value("sum(corevital_requests_total)") > 10, 30, "requests counted")
        end = time.monotonic() + PLAIN_S
        while time.monotonic() < end:
            story.quiet |= (here.names("pending") | here.names("firing")) - {WATCHDOG}
            time.sleep(1)
        story.told_while_plain = list(manager.notices)
        traffic.mix = {"plain": 3, "loop": 1, "nan": 1, "cut": 2}
        traffic.once = {"stuck": 8}
        until(lambda: MUST_FIRE.keys() <= manager.notified("firing"), 90, f"{sorted(MUST_FIRE)}")
        traffic.mix = {"plain": 5}
        until(lambda: MUST_FIRE.keys() - LASTING <= manager.notified("resolved"), 150, "resolved")
        assert "Traceback" not in here.server.text()
        yield story


@pytest.mark.engine
def test_plain_traffic_raises_no_alert(story: Story) -> None:
    assert story.watched.traffic.sent["plain"] > 100
    assert story.quiet == set()
    assert [notice for notice in story.told_while_plain if notice.name != WATCHDOG] == []


@pytest.mark.engine
def test_the_alert_that_always_fires_goes_to_the_dead_mans_receiver_alone(story: Story) -> None:
    assert WATCHDOG in {notice.name for notice in story.told_while_plain}
    told = [notice for notice in story.watched.alertmanager.notices if notice.name == WATCHDOG]
    assert {notice.receiver for notice in told} == {"dead-man"}
    assert {notice.name for notice in story.watched.alertmanager.notices if notice.receiver == "dead-man"} == {WATCHDOG}


@pytest.mark.engine
def test_alerts_fire_for_what_went_wrong_and_for_nothing_else(story: Story) -> None:
    assert story.watched.alertmanager.notified("firing") - MAY_FIRE - {WATCHDOG} == MUST_FIRE.keys()


@pytest.mark.engine
@pytest.mark.parametrize("name", MUST_FIRE)
def test_an_alert_names_cause_and_place(story: Story, name: str) -> None:
    told = [notice for notice in story.watched.alertmanager.notices if notice.name == name]
    assert MUST_FIRE[name] in {notice.labels["severity"] for notice in told}
    for notice in told:
        assert notice.labels["gen_ai_request_model"] == MODEL_NAME
        assert MODEL_NAME in notice.annotations["summary"]
        assert notice.annotations.keys() == {"summary", "description", "runbook_url", "dashboard_url"}
        assert "{{" not in str(notice.annotations)
        assert notice.labels["alertname"] == name
    if name == "CorevitalNaNLogits":
        assert {notice.labels["instance"] for notice in told} == {f"127.0.0.1:{story.watched.server.port}"}


@pytest.mark.engine
def test_alerts_go_to_the_receiver_of_their_severity(story: Story) -> None:
    """By our own routes: the first one whose matcher names the severity."""
    routes = yaml.safe_load(ROUTES.read_text())["route"]["routes"]
    receivers = {
        severity: {route["receiver"] for route in routes if f'severity="{severity}"' in str(route).replace(" ", "")}
        for severity in ("critical", "warning", "info")
    }
    assert all(receivers.values())
    assert len(set.union(*receivers.values())) == sum(map(len, receivers.values())), "one shared by two severities"
    for notice in story.watched.alertmanager.notices:
        if notice.name != WATCHDOG:
            assert notice.receiver in receivers[notice.labels["severity"]], notice


@pytest.mark.engine
def test_every_panel_shows_something(story: Story) -> None:
    """The dashboards' source lists what may be empty; a query that Prometheus cannot parse is HTTP 400."""
    asked = [
        each for each in expressions(compare="30s", __rate_interval="20s", __range="120s") if each.language == "promql"
    ]
    assert len(asked) > 50
    empty = [
        f"{each.dashboard}, {each.panel}: {each.query}"
        for each in asked
        if not story.watched.prometheus.query(each.query) and not each.may_be_empty
    ]
    assert empty == []


@pytest.mark.engine
def test_alerts_resolve_once_the_traffic_is_plain_again(story: Story) -> None:
    for name in MUST_FIRE.keys() - LASTING:
        first = min(notice.at for notice in story.watched.alertmanager.notices if notice.name == name)
        last = max((notice for notice in story.watched.alertmanager.notices if notice.name == name), key=lambda n: n.at)
        assert last.status == "resolved", name
        assert last.at > first


def test_prometheus_accepts_the_stacks_file() -> None:
    unpacked = UNPACKED.with_name("promtool")
    promtool = unpacked if unpacked.exists() else shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: `make test` unpacks Debian's where apt is")
    command = [str(promtool), "check", "config", str(ROOT / "dashboards/prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rule files found" in done.stdout


def test_only_durations_are_shortened() -> None:
    assert shortened("1h") == "60000ms"
    assert shortened("1h30m") == "90000ms"
    query = 'rate(a_total{le="5m"}[5m:1m] offset 1h) / model:b:increase5m'
    assert shortened_query(query) == 'rate(a_total{le="5m"}[5000ms:1000ms] offset 60000ms) / model:b:increase5m'
    for rules in RULES:
        original, hurried = yaml.safe_load(rules.read_text()), yaml.safe_load(shortened_rules(rules.read_text()))
        for group, fast in zip(original["groups"], hurried["groups"], strict=True):
            for rule, changed in zip(group["rules"], fast["rules"], strict=True):
                assert rule.keys() == changed.keys()
                same = rule.keys() - {"expr", "for", "keep_firing_for"}
                assert {name: rule[name] for name in same} == {name: changed[name] for name in same}
