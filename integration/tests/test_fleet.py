"""Three real vLLM servers of one model, Prometheus and Alertmanager: `make test-fleet`, a quarter of an hour or more.

Each server restarts, as in a deploy; one loops; the engine of one hangs. Everything is sixty times as fast as in the
files, as in `test_alerting.py`, but for a server's start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from integration.harness.alerting import Notice
from integration.harness.replicas import Replicas, replicas
from integration.harness.watched import until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(2400)]

HUNG, LOOPING = "CorevitalEngineStalled", "CorevitalInstanceLoops"
OF_THE_MODEL = {
    "CorevitalLoopShareHigh", "CorevitalStuckInLoops", "CorevitalFaultBudgetBurn",
    "CorevitalTrafficShifted", "CorevitalWarningShareRising", "CorevitalHighRiskShareRising",
}  # fmt: skip
"""One server of three is a third of the model."""


@dataclass
class Incidents:
    """What receivers were notified of, incident by incident."""

    fleet: Replicas
    quiet: set[str] = field(default_factory=set)
    restarted: list[Notice] = field(default_factory=list)
    loops: list[Notice] = field(default_factory=list)
    hang: list[Notice] = field(default_factory=list)


def each_restarts(fleet: Replicas, seen: Incidents) -> None:
    for name, server in fleet.servers.items():
        print(f"{name} restarted in {server.restart(lambda: seen.quiet.update(fleet.firing())):.0f} s")
    fleet.wait_for_requests()
    seen.quiet |= fleet.firing()
    seen.restarted = fleet.notices(0)


def one_loops(fleet: Replicas, seen: Incidents) -> None:
    start, bad = time.time(), fleet.servers["gpu-b"].traffic
    bad.mix = {"plain": 2, "loop": 3}
    until(lambda: LOOPING in fleet.notified(start), 90, LOOPING)
    bad.mix = {"plain": 2}
    until(lambda: LOOPING in fleet.notified(start, "resolved"), 90, f"{LOOPING} resolved")
    seen.loops = fleet.notices(start)


def one_hangs(fleet: Replicas, seen: Incidents) -> None:
    start = time.time()
    with fleet.servers["gpu-c"].stopped_engine():
        until(lambda: HUNG in fleet.notified(start), 60, HUNG)
    until(lambda: HUNG in fleet.notified(start, "resolved"), 60, f"{HUNG} resolved")
    seen.hang = fleet.notices(start)


@pytest.fixture(scope="module")
def incidents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Incidents]:
    """Each server restarts, then one loops, then the engine of one hangs."""
    with replicas(tmp_path_factory.mktemp("replicas")) as fleet:
        seen = Incidents(fleet)
        for server in fleet.servers.values():
            server.traffic.mix = {"plain": 2}
        fleet.wait_for_requests()
        each_restarts(fleet, seen)
        one_loops(fleet, seen)
        one_hangs(fleet, seen)
        yield seen


def test_a_rolling_restart_is_quiet(incidents: Incidents) -> None:
    assert incidents.fleet.prometheus.value("sum(resets(corevital_requests_total[1h])) > 0") > 0
    assert incidents.quiet == set()
    assert incidents.restarted == []


def test_an_alert_names_the_one_server_of_three_that_loops(incidents: Incidents) -> None:
    told = incidents.loops
    assert {notice.labels["severity"] for notice in told if notice.name == LOOPING} == {"critical"}
    assert {notice.labels["instance"] for notice in told if "instance" in notice.labels} == {"gpu-b"}
    assert {notice.name for notice in told if "instance" not in notice.labels} <= OF_THE_MODEL
    for notice in told:
        if notice.name == LOOPING:
            assert "gpu-b" in notice.annotations["summary"]


def test_an_alert_names_the_server_whose_engine_hangs(incidents: Incidents) -> None:
    told = [notice for notice in incidents.hang if notice.name == HUNG]
    assert {notice.labels["instance"] for notice in told} == {"gpu-c"}
    assert {notice.labels["severity"] for notice in told} == {"critical"}
    assert {notice.name for notice in incidents.hang if notice.labels.get("instance") == "gpu-c"} == {HUNG}
    assert "gpu-a" not in {notice.labels.get("instance") for notice in incidents.hang}
