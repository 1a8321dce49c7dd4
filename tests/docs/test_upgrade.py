"""The upgrade page on 0.1: every public name of 0.1.0 is there, with its default, but for what the page lists.

`names_of_0_1.json` was made once, of the code of 0.1.0.
"""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from corevital_otel import conventions, settings
from corevital_otel.cli.app import app
from corevital_otel.losses import Loss
from corevital_otel.metrics.instruments import INSTRUMENTS
from corevital_otel.store import schema

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operate/upgrade.md").read_text()
OLD: dict[str, Any] = json.loads((Path(__file__).parent / "names_of_0_1.json").read_text())


def listed(column: str) -> dict[str, tuple[str, str]]:
    """The rows of the page's table of changed defaults: by name, what it was and what it is."""
    _, _, table = PAGE.partition(f"| {column} | 0.1 | now |")
    rows = [line.strip("| ").split(" | ") for line in table.strip().split("\n\n")[0].splitlines()[1:]]
    return {name.strip("`"): (was.strip("`"), now.strip("`")) for name, was, now in rows}


def test_each_setting_has_its_default() -> None:
    now = {name: str(default) for name, default, *_ in settings.describe()}
    assert {name: now.get(name) for name in OLD["settings"]} == OLD["settings"]


def test_each_attribute_and_flag_has_its_name() -> None:
    now = {value for value in vars(conventions).values() if isinstance(value, str)}
    assert set(OLD["attributes"]) - now == set()
    assert set(OLD["flags"]) <= set(conventions.FLAGS)
    assert set(OLD["conditions"]) <= set(conventions.CONDITIONS)


def test_each_metric_has_its_unit_labels_and_buckets() -> None:
    now = INSTRUMENTS
    for name, was in OLD["metrics"].items():
        one = now[name]
        assert {"kind": str(one.kind), "unit": one.unit, "labels": str(one.labels)} == was, name
        assert str(one.buckets) == OLD["buckets"][name], name


def test_each_loss_has_its_labels() -> None:
    assert set(OLD["losses"]) <= {f"{loss.labels['what']} {loss.labels['why']}" for loss in Loss}


def test_each_command_has_its_options() -> None:
    group: Any = typer.main.get_command(app)

    def options(path: str) -> set[str]:
        command = group
        for word in path.split()[1:]:
            command = command.commands[word]
        return {" ".join(parameter.opts) for parameter in command.params}

    for path, was in OLD["commands"].items():
        assert set(was) <= options(path), path


def test_each_column_is_there() -> None:
    with closing(sqlite3.connect(":memory:")) as store:
        schema.create(store)
        for table, was in OLD["columns"].items():
            assert set(was) <= {column for _, column, *_ in store.execute(f"pragma table_info({table})")}, table


def test_each_alert_series_dashboard_and_file_is_there() -> None:
    files = (ROOT / "dashboards/prometheus").glob("*.rules.yml")
    rules = [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in rules if "alert" in rule}
    assert OLD["alerts"].items() <= severities.items()
    assert set(OLD["recordings"]) <= {rule["record"] for rule in rules if "record" in rule}
    boards = (ROOT / "dashboards/grafana").glob("*.json")
    assert set(OLD["dashboards"]) <= {json.loads(file.read_text())["uid"] for file in boards}
    assert [name for name in OLD["files"] if not (ROOT / name).exists()] == []


def test_the_changed_defaults_of_the_compose_file_are_those_of_the_page() -> None:
    text = (ROOT / "docker-compose.otel.yml").read_text()
    now = dict(re.findall(r"\$\{([A-Z_]+):-((?:[^{}]|\$\{[^}]*\})*)\}", text))
    assert OLD["compose"].keys() <= now.keys()
    ports = {name: re.sub(r"\$\{\w+:-(\d+)\}", r"\1", value) for name, value in now.items()}
    changed = {name: (was, ports[name]) for name, was in OLD["compose"].items() if ports[name] != was}
    assert changed == listed("variable of the Compose file")


@pytest.mark.parametrize("setting", [name for name, *_ in settings.describe() if name not in OLD["settings"]])
def test_each_new_setting_is_named(setting: str) -> None:
    assert f"`{setting}`" in PAGE
