"""The incidents of an operator's review, fleets included: which alerts fire, when and where, and no other ones.

promtool evaluates them minute by minute.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.dashboards.fleets import Fired, Fleet, firing, fleet, named
from tests.dashboards.tools import DASHBOARDS


def one_of_thirty_loops() -> Fleet:
    return fleet(30).loops("i0", "0x20 0+10x100")


def one_of_twenty_at_high_risk() -> Fleet:
    made = fleet(20)
    made.change("corevital_requests_total", "0+10x20 200x100", instance="i7", finish_reason="stop", risk_level="low")
    return made.change("corevital_requests_total", "0x20 0+10x100", instance="i7", risk_level="high")


def one_of_ten_is_stuck() -> Fleet:
    made = fleet(10)
    for number in range(10):
        made.of(f"i{number}", "corevital_sequences_running", "8x120")
        made.of(f"i{number}", "corevital_sequences_looping", "0x20 8x100" if number == 3 else "0x120")
    return made


def engine_hangs() -> Fleet:
    """Ninety minutes: sequences pile up, some clients give up, and ``up`` is 1."""
    made = fleet(2)
    made.change("corevital_requests_total", "0+10x30 300x90", instance="i0", finish_reason="stop", risk_level="low")
    made.change("vllm:request_success_total", "0+10x30 300x90", instance="i0")
    made.of("i0", "corevital_requests_total", "0x40 0+1x80", finish_reason="abort", risk_level="unknown")
    for server, running, tokens in (("i0", "3x30 3+2x90", "0+900x30 27000x90"), ("i1", "3x120", "0+900x120")):
        made.of(server, "corevital_sequences_running", running)
        made.put("vllm:generation_tokens_total", tokens, job="vllm", instance=server)
    return made


def every_client_gives_up() -> Fleet:
    made = fleet(1).change("corevital_requests_total", "0+10x30 300x90", finish_reason="stop", risk_level="low")
    return made.of("i0", "corevital_requests_total", "0x30 0+10x90", finish_reason="abort", risk_level="unknown")


def engine_dies_every_twenty_minutes() -> Fleet:
    """With 60 sequences running, 30 % of all; the page has their errors once before the process ends."""
    made = fleet(1).change("up", "1x19 " + "1 0 1x17 " * 5)
    made.change("corevital_requests_total", "0+10x19 200 _ 0+10x17 190 _ 0+10x17 190 _ 0+10x17 190 _ 0+10x30",
                finish_reason="stop", risk_level="low")  # fmt: skip
    return made.change(
        "corevital_requests_total", "0x19 60 _ 0x17 60 _ 0x17 60 _ 0x17 60 _ 0x30", finish_reason="error"
    )


def restarts_every_ten_minutes() -> Fleet:
    made = fleet(1).change("corevital_requests_total", "0+10x9 " * 12, finish_reason="stop", risk_level="low")
    return made.change("vllm:request_success_total", "0+10x9 " * 12)


def three_faults_at_once(share_percent: int) -> Fleet:
    """That share of sequences, at 100 a minute, has NaN, Inf and a loop."""
    made = Fleet().server("i0", rate=100)
    for flag in ("nan_detected", "inf_detected", "repetition_loop_detected"):
        made.change("corevital_health_flags_total", f"0+{share_percent}x120", flag=flag)
    return made.change("corevital_requests_faulty_total", f"0+{share_percent}x120", flag="nan_detected")


def other_job_name() -> Fleet:
    return Fleet().server("10.0.0.7:8000", job="vllm-engine-service")


def unknown_job_is_down() -> Fleet:
    return Fleet().server("10.0.0.7:8000", job="llama").change("up", "1x20 0x100")


def cluster_vanishes() -> Fleet:
    made = Fleet()
    for cluster in ("east", "west"):
        made.server("i0", cluster=cluster)
    for name in [name for name in made.series if 'cluster="west"' in name]:
        made.series[name] = made.series[name].replace("x120", "x30")
    return made


def looping_in_one_cluster() -> Fleet:
    made = Fleet()
    for cluster in ("east", "west"):
        for number in range(3):
            made.server(f"i{number}", cluster=cluster)
    for metric in ("corevital_requests_faulty_total", "corevital_health_flags_total"):
        made.change(metric, "0+9x120", cluster="west", flag="repetition_loop_detected")
    return made


def deploy() -> Fleet:
    """Each of three servers is away for six minutes, one after the other, and starts counting from zero."""
    made = fleet(3)
    for number in range(3):
        before, after = 20 + 10 * number, 94 - 10 * number
        made.change("up", f"1x{before} 0x5 1x{after}", instance=f"i{number}")
        restarted = f"0+10x{before} _x6 0+10x{after}"
        made.change(
            "corevital_requests_total", restarted, instance=f"i{number}", finish_reason="stop", risk_level="low"
        )
        made.change("vllm:request_success_total", restarted, instance=f"i{number}")
        ended = f"0x{before - 1} 12 _x6 0x{after}"  # those in flight
        made.change("corevital_requests_total", ended, instance=f"i{number}", finish_reason="error")
    return made


def rollback() -> Fleet:
    """Three of six servers start again with ``COREVITAL_ENABLED=0``."""
    made = fleet(6)
    for name in list(made.series):
        if name.startswith("corevital_") and any(f'"i{number}"' in name for number in range(3)):
            made.series[name] = made.series[name].replace("x120", "x30")
    return made


def rollout() -> Fleet:
    """Ten servers start again with corevital, one of them first, then half, then all."""
    made = Fleet()
    for number in range(10):
        at = 20 if number == 0 else 50 if number < 5 else 80
        left = made.minutes - at - 6
        made.put("up", f"1x{at - 1} 0x5 1x{left}", job="vllm", instance=f"i{number}")
        made.put("corevital_telemetry_faults_total", f"_x{at + 5} 0x{left}", job="vllm", instance=f"i{number}")
    return made


def scale_up() -> Fleet:
    """Beside one server two more are started, which load their weights for six minutes."""
    made = fleet(1)
    for number in (1, 2):
        made.put("up", "_x20 0x6 1x94", job="vllm", instance=f"i{number}")
        made.put("corevital_telemetry_faults_total", "_x26 0x94", job="vllm", instance=f"i{number}")
    return made


def restart_to_new_names() -> Fleet:
    """Pods are replaced one by one; each new one loads its weights for half an hour."""
    made = Fleet()
    for number in range(3):
        at = 10 + 35 * number
        left = made.minutes - at - 31
        made.put("up", f"1x{at}", job="vllm", instance=f"old{number}")
        made.put("corevital_telemetry_faults_total", f"0x{at}", job="vllm", instance=f"old{number}")
        made.put("up", f"_x{at} 0x30 1x{left}", job="vllm", instance=f"new{number}")
        made.put("corevital_telemetry_faults_total", f"_x{at + 31} 0x{left}", job="vllm", instance=f"new{number}")
    return made


def rollback_to_new_names() -> Fleet:
    """All servers start again without corevital, under other names, as pods do."""
    made = Fleet()
    for number in range(3):
        made.put("up", "1x30 _x90", job="vllm", instance=f"old{number}")
        made.put("corevital_telemetry_faults_total", "0x30 _x90", job="vllm", instance=f"old{number}")
        made.put("up", "_x30 0x5 1x85", job="vllm", instance=f"new{number}")
    return made


def quiet_night() -> Fleet:
    """One sequence in ten minutes, and one of them loops."""
    made = Fleet().server("i0", rate=0.1)
    return made.loops("i0", "0x60 1x60")


def few_losses() -> Fleet:
    """One span of five is lost; two of a hundred sequences are flagged."""
    made = fleet(1, minutes=300).change("corevital_requests_total", "0+0.5x300", finish_reason="stop", risk_level="low")
    made.loops("i0", "0x100 1x60 2x140")
    made.put(
        "corevital_telemetry_dropped_total", "0x60 1x240", job="vllm", instance="i0", what="span", why="export_failed"
    )
    return made


FIRES: list[tuple[Callable[[], Fleet], int, int, Fired]] = [
    # incident, when it is quiet still, when it must have fired, what fires then
    (one_of_thirty_loops, 20, 35, {("CorevitalInstanceLoops", "i0")}),
    (one_of_twenty_at_high_risk, 20, 35, {("CorevitalInstanceHighRisk", "i7")}),
    (one_of_ten_is_stuck, 20, 24, {("CorevitalInstanceStuckInLoops", "i3")}),
    (engine_hangs, 30, 40, {("CorevitalEngineStalled", "i0")}),
    (every_client_gives_up, 30, 40, {("CorevitalAbortShareHigh", "")}),
    (engine_dies_every_twenty_minutes, 18, 63, {("CorevitalCrashLoop", "i0"), ("CorevitalFaultBudgetBurn", "")}),
    (restarts_every_ten_minutes, 25, 45, {("CorevitalCrashLoop", "i0")}),
    (unknown_job_is_down, 25, 35, {("CorevitalTargetDown", "10.0.0.7:8000")}),
    (cluster_vanishes, 30, 45, {("CorevitalTargetsAbsent", "")}),
]


@pytest.mark.parametrize(("incident", "before", "at", "expected"), FIRES, ids=[case[0].__name__ for case in FIRES])
def test_an_incident_fires_in_time_and_names_its_server(
    incident: Callable[[], Fleet], before: int, at: int, expected: Fired, tmp_path: Path
) -> None:
    found = firing(incident().series, [before, at], tmp_path)
    assert named(found[before]) == set()
    assert named(found[at]) == expected


@pytest.mark.parametrize(
    "calm",
    [other_job_name, deploy, rollback, scale_up, restart_to_new_names, rollback_to_new_names, quiet_night, few_losses],
    ids=lambda made: made.__name__,
)
def test_what_is_not_an_incident_is_quiet(calm: Callable[[], Fleet], tmp_path: Path) -> None:
    made = calm()
    found = firing(made.series, range(10, made.minutes, 5), tmp_path)
    assert {minute: alerts for minute, alerts in found.items() if alerts} == {}


def test_a_rollout_needs_one_silence_until_its_end(tmp_path: Path) -> None:
    found = firing(rollout().series, range(10, 120, 10), tmp_path)
    assert {name for alerts in found.values() for name, _ in named(alerts)} == {"CorevitalPluginAbsent"}
    absent = {minute: len(named(alerts)) for minute, alerts in found.items()}
    assert (absent[40], absent[70], absent[110]) == (9, 5, 0)


def test_a_sequence_with_three_faults_burns_once(tmp_path: Path) -> None:
    """5 % is five times the budget: below the burn rates of a page within the hour, and above the slow ones."""
    found = firing(three_faults_at_once(5).series, [100], tmp_path)[100]
    assert {(alert["alertname"], alert.get("window", "")) for alert in found} == {
        ("CorevitalNaNLogits", ""), ("CorevitalInfLogits", ""), ("CorevitalFaultBudgetBurn", "1d"),
    }  # fmt: skip
    paged = firing(three_faults_at_once(15).series, [100], tmp_path)[100]
    assert {alert["window"] for alert in paged if alert["alertname"] == "CorevitalFaultBudgetBurn"} == {
        "1h",
        "6h",
        "1d",
    }


def test_an_alert_names_its_cluster(tmp_path: Path) -> None:
    found = firing(looping_in_one_cluster().series, [60], tmp_path)[60]
    assert found
    assert {alert["cluster"] for alert in found} == {"west"}
    absent = firing(cluster_vanishes().series, [45], tmp_path)[45]
    assert [alert["cluster"] for alert in absent] == ["west"]
    for group in yaml.safe_load((DASHBOARDS / "prometheus/alerts.rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert "{{ with $labels.cluster }}" in rule["annotations"]["description"]
