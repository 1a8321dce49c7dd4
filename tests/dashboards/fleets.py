"""Fleets as series for promtool: one series a line is too long for thirty servers, so they are made here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tests.dashboards.tools import RULES, run

from corevital_otel import conventions

Fired = set[tuple[str, str]]
"""An alert's name, and the server that it names, or an empty text."""


@dataclass
class Fleet:
    """Series of a fleet by what their labels are."""

    minutes: int = 120
    series: dict[str, str] = field(default_factory=dict)

    def put(self, metric: str, values: str, **labels: str) -> None:
        inside = ",".join(f'{name}="{value}"' for name, value in labels.items())
        self.series[f"{metric}{{{inside}}}"] = values

    def server(self, instance: str, rate: float = 10, job: str = "vllm", model: str = "m", **labels: str) -> Fleet:
        """A healthy server that answers ``rate`` sequences a minute; keyword arguments are further labels."""
        n, where = self.minutes, {"job": job, "instance": instance, **labels}
        of_model = {**where, "gen_ai_request_model": model}
        self.put("up", f"1x{n}", **where)
        self.put("corevital_telemetry_faults_total", f"0x{n}", **where)
        self.put("vllm:request_success_total", f"0+{rate}x{n}", **where)
        for reason, level, values in (
            ("stop", "low", f"0+{rate}x{n}"),
            ("stop", "high", f"0x{n}"),
            ("error", "low", f"0x{n}"),
        ):
            self.put("corevital_requests_total", values, **of_model, finish_reason=reason, risk_level=level)
        for flag in conventions.FAULT_FLAGS:
            self.put("corevital_requests_faulty_total", f"0x{n}", **of_model, flag=flag)
        for flag in conventions.FLAGS:
            self.put("corevital_health_flags_total", f"0x{n}", **of_model, flag=flag)
        return self

    def change(self, metric: str, values: str, **labels: str) -> Fleet:
        """Replace the values of each series with these labels."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        found = [name for name in self.series if name.startswith(metric + "{") and all(each in name for each in wanted)]
        assert found
        self.series |= dict.fromkeys(found, values)
        return self

    def loops(self, instance: str, values: str) -> Fleet:
        flag = "repetition_loop_detected"
        self.change("corevital_requests_faulty_total", values, instance=instance, flag=flag)
        return self.change("corevital_health_flags_total", values, instance=instance, flag=flag)

    def of(self, instance: str, metric: str, values: str, **labels: str) -> Fleet:
        self.put(metric, values, job="vllm", instance=instance, gen_ai_request_model="m", **labels)
        return self


def fleet(servers: int, **options: Any) -> Fleet:
    made = Fleet(**options)
    for number in range(servers):
        made.server(f"i{number}")
    return made


def firing(
    series: Mapping[str, str], minutes: Iterable[int], folder: Path, files: Iterable[Path] = RULES
) -> dict[int, list[dict[str, str]]]:
    """Labels of the alerts that fire at each of these minutes, by promtool."""
    expr = 'ALERTS{alertstate="firing",alertname!="CorevitalWatchdog"}'
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": expr, "eval_time": f"{minute}m", "exp_samples": [{"labels": "asked{}", "value": minute}]}
            for minute in minutes
        ],
    }
    groups = [group["name"] for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    first = ["corevital-requests", "corevital-own-week", "corevital-servers", "corevital-peers", "corevital-telemetry"]
    order = [*first, *(name for name in groups if name not in first)]
    path = folder / "incident.test.yml"
    made = {"rule_files": [str(file) for file in files], "group_eval_order": order, "evaluation_interval": "1m"}
    path.write_text(json.dumps(made | {"tests": [test]}))
    done = run("promtool", "test", "rules", path)
    return _read(done.stdout + done.stderr, list(minutes))


def _read(text: str, minutes: list[int]) -> dict[int, list[dict[str, str]]]:
    """What promtool got at each minute: each of its expectations fails by design, in the order of the test."""
    found = text.split("\n        got: ")[1:]
    assert len(found) == len(minutes), text
    result = {}
    for minute, got in zip(minutes, found, strict=True):
        line = got.splitlines()[0]
        samples = [] if line == "nil" else line.split("} 1E+00")[:-1]
        result[minute] = [dict(yaml.safe_load(_as_yaml(sample))) for sample in samples]
    return result


def _as_yaml(sample: str) -> str:
    return sample.lstrip(", ").removeprefix("{").replace('="', '": "').join(('{"', "}")).replace('", ', '", "')


def named(alerts: list[dict[str, str]], *, least: str = "warning") -> Fired:
    order = ("info", "warning", "critical")
    return {
        (alert["alertname"], alert.get("instance", ""))
        for alert in alerts
        if order.index(alert["severity"]) >= order.index(least)
    }
