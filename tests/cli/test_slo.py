"""`corevital slo`: objectives from a file, error budgets, exit statuses, and one clear line for a wrong file."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from corevital_otel.slo.objectives import DEFAULT, Objectives

ROOT = Path(__file__).resolve().parents[2]


def slow(report: Any) -> Any:
    return dataclasses.replace(report, outcome=dataclasses.replace(report.outcome, first_chunk_s=9.0))


def test_objectives_that_are_met(store: Any, traffic: Any, command: Any) -> None:
    store("c.db", traffic(count=200, seed=1))
    done = command("slo", "--db", "c.db", "--json")
    assert done.status == 0, done.error
    found = json.loads(done.output)
    assert found["verdict"] == "met"
    faults, first = found["objectives"]
    assert (faults["objective"], faults["requests"], faults["bad"]) == ("faults", 200, 0)
    assert (faults["allowed"], faults["used"]) == (2, 0)
    assert (first["objective"], first["requests"], first["verdict"]) == ("first_token", 200, "met")


def test_a_violated_objective(store: Any, traffic: Any, command: Any, tmp_path: Path) -> None:
    good = traffic(count=200, seed=1)
    store("c.db", [*good[:189], *map(slow, good[189:])])
    done = command("slo", "--db", "c.db")
    assert done.status == 1
    assert re.search(r"first_token +0\.95 +200 +11 +10 +110% +violated", done.output), done.output
    assert done.output.splitlines()[-1] == "violated: 200 requests in 1h"
    (tmp_path / "slo.toml").write_text("[first_token]\ntarget = 0.9\nwithin_s = 2.5\n")
    assert command("slo", "slo.toml", "--db", "c.db").status == 0, "20 of 200 are allowed"


def test_exactly_the_budget_is_met(store: Any, traffic: Any, command: Any) -> None:
    good = traffic(count=200, seed=1)
    store("c.db", [*good[:190], *map(slow, good[190:])])
    assert command("slo", "--db", "c.db").status == 0


def test_too_little_traffic(store: Any, traffic: Any, command: Any) -> None:
    good = traffic(count=50, seed=1)
    store("few.db", good)
    done = command("slo", "--db", "few.db")
    assert done.status == 2
    assert done.error == ""
    assert "too little traffic: needs 100" in done.output
    store("bad.db", [*good[:40], *map(slow, good[40:])])
    assert command("slo", "--db", "bad.db").status == 1, "they used up what 100 requests would be allowed"


def test_a_strict_target_needs_more_traffic(store: Any, traffic: Any, command: Any, tmp_path: Path) -> None:
    store("c.db", traffic(count=200, seed=1))
    (tmp_path / "slo.toml").write_text("[faults]\ntarget = 0.999\n")
    done = command("slo", "slo.toml", "--db", "c.db", "--json")
    assert done.status == 2
    assert json.loads(done.output)["objectives"][0]["least_requests"] == 1000
    (tmp_path / "slo.toml").write_text("[faults]\ntarget = 0.999\nleast_requests = 150\n")
    assert command("slo", "slo.toml", "--db", "c.db").status == 0


def test_window_and_model(store: Any, traffic: Any, command: Any) -> None:
    new, old = traffic(count=150, seed=1), [slow(report) for report in traffic(count=150, seed=2)]
    before = time.time_ns() - 7200 * 10**9
    old = [dataclasses.replace(one, outcome=dataclasses.replace(one.outcome, end_ns=before)) for one in old]
    store("c.db", [*new, *old])
    assert command("slo", "--db", "c.db").status == 0
    assert command("slo", "--db", "c.db", "--since", "3h").status == 1
    assert command("slo", "--db", "c.db", "--model", "tiny").status == 0
    assert command("slo", "--db", "c.db", "--model", "other").status == 2


def test_risk_counts_requests_that_have_a_level(
    store: Any, traffic: Any, report: Any, command: Any, tmp_path: Path
) -> None:
    risk = report().risk
    levels = ["high"] * 30 + ["low"] * 100 + ["unknown"] * 50
    rows = [
        dataclasses.replace(row, risk=dataclasses.replace(risk, level=level))
        for row, level in zip(traffic(count=180, seed=1), levels, strict=True)
    ]
    store("c.db", rows)
    (tmp_path / "slo.toml").write_text("[risk]\n")
    done = command("slo", "slo.toml", "--db", "c.db", "--json")
    assert done.status == 1
    (found,) = json.loads(done.output)["objectives"]
    assert (found["requests"], found["bad"], found["target"]) == (130, 30, 0.9)


def test_the_defaults_are_the_objectives_of_the_dashboards() -> None:
    rules = (ROOT / "dashboards/prometheus/slo.rules.yml").read_text()
    said = tomllib.loads((ROOT / "dashboards/config.toml").read_text())["objectives"]
    assert DEFAULT.faults is not None
    assert DEFAULT.first_token is not None
    assert DEFAULT.faults.target == 1 - said["fault_budget"]
    assert set(re.search(r'flag=~"([a-z_|]+)"', rules)[1].split("|")) == set(DEFAULT.faults.flags)
    assert DEFAULT.faults.finish_reasons == re.findall(r'finish_reason="(\w+)"', rules)[:1]
    assert DEFAULT.first_token.target == 1 - said["first_token_budget"]
    assert DEFAULT.first_token.within_s == said["first_token_s"]


def test_the_example_file_has_the_defaults() -> None:
    page = (ROOT / "docs/operate/pipeline.md").read_text()
    (example,) = [text for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[faults]" in text]
    found = Objectives.model_validate(tomllib.loads(example))
    assert found.faults == DEFAULT.faults
    assert found.first_token == DEFAULT.first_token


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[latency]\ntarget = 0.9\n", "unknown objective [latency]: use [faults], [first_token], [risk]"),
        ("[faults]\ngoal = 0.9\n", "unknown key [faults] goal: use target, least_requests, flags, finish_reasons"),
        ("[faults]\ntarget = 99\n", "[faults] target 99: "),
        ('[faults]\ntarget = "high"\n', "[faults] target 'high': "),
        ('[faults]\nflags = ["nan"]\n', "unknown flag: use some of nan_detected, inf_detected"),
        ("faults = 0.99\n", "[faults] 0.99: "),
        ("", "names no objective: add one of [faults], [first_token], [risk]"),
        ("[faults\n", "is not TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_file_is_one_line(
    store: Any, traffic: Any, command: Any, tmp_path: Path, text: str | None, message: str
) -> None:
    store("c.db", traffic(count=1, seed=1))
    if text is not None:
        (tmp_path / "slo.toml").write_text(text)
    done = command("slo", "slo.toml", "--db", "c.db")
    assert done.status == 1
    assert done.output == ""
    assert message in done.error
    assert "slo.toml" in done.error


def test_without_a_store_there_is_one_line(command: Any) -> None:
    done = command("slo", "--db", "none.db")
    assert done.status == 1
    assert "there is no store at none.db" in done.error
