"""Alertmanager's routes are valid, lead to the receiver of each severity, and contain no secret."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.dashboards.test_rules import ALERTS
from tests.dashboards.tools import DASHBOARDS, RULES, run

PATH = DASHBOARDS / "alertmanager/alertmanager.yml"
CONFIG = yaml.safe_load(PATH.read_text())


def test_amtool_accepts_the_file() -> None:
    done = run("amtool", "check-config", PATH)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "page"), ("warning", "chat"), ("info", "mail"), ("", "chat")]
)
def test_a_severity_goes_to_its_receiver(severity: str, receiver: str) -> None:
    labels = ["alertname=x", *([f"severity={severity}"] if severity else [])]
    done = run("amtool", "config", "routes", "test", f"--config.file={PATH}", *labels)
    assert done.stdout.split() == [receiver]


def test_the_alert_that_always_fires_goes_to_the_dead_mans_receiver_alone() -> None:
    labels = ("severity=none", "alertname=CorevitalWatchdog")
    done = run("amtool", "config", "routes", "test", f"--config.file={PATH}", *labels)
    assert done.stdout.split() == ["dead-man"]
    (route,) = [route for route in CONFIG["route"]["routes"] if route["receiver"] == "dead-man"]
    assert route["repeat_interval"] == "5m"


def test_amlint_finds_nothing_in_routes_and_inhibitions_beside_our_rules() -> None:
    amlint = shutil.which("amlint", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    assert amlint is not None
    rules = [f"--rules={path}" for path in RULES]
    done = subprocess.run(
        [amlint, "check", "--strict", *rules, PATH], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_incident_of_a_model_is_one_message() -> None:
    assert CONFIG["route"]["group_by"] == ["cluster", "gen_ai_request_model"]
    grouped = [route["receiver"] for route in CONFIG["route"]["routes"] if "group_by" in route]
    assert grouped == ["mail"]


def test_pagerduty_slack_and_mail_read_their_secrets_from_files() -> None:
    kinds = {kind for receiver in CONFIG["receivers"] for kind in receiver if kind != "name"}
    assert kinds == {"pagerduty_configs", "slack_configs", "email_configs", "webhook_configs"}
    text = PATH.read_text()
    files = ("slack_api_url_file", "smtp_auth_password_file", "routing_key_file")
    assert all(f"{name}: /etc/alertmanager/secrets/" in text for name in files)
    for plain in ("slack_api_url:", "smtp_auth_password:", "routing_key:", "api_url:"):
        assert plain not in text


def test_inhibitions_name_existing_alerts() -> None:
    names = {alert["alert"] for alert in ALERTS}
    for rule in CONFIG["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            label, operator, value = matcher.split(" ", 2)
            if label == "alertname":
                assert [name for name in names if re.fullmatch(value.strip('"'), name)], matcher
                assert operator in ("=", "=~")
