"""Alertmanager's routes: valid, to the receiver that a severity calls for, with no secret in the file."""

from __future__ import annotations

import re

import pytest
import yaml
from tests.dashboards.test_rules import ALERTS
from tests.dashboards.tools import DASHBOARDS, run

PATH = DASHBOARDS / "alertmanager/alertmanager.yml"
CONFIG = yaml.safe_load(PATH.read_text())


def test_amtool_takes_the_file() -> None:
    done = run("amtool", "check-config", PATH)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "page"), ("warning", "chat"), ("info", "mail"), ("", "chat")]
)
def test_a_severity_goes_to_its_receiver(severity: str, receiver: str) -> None:
    done = run("amtool", "config", "routes", "test", f"--config.file={PATH}", f"severity={severity}", "alertname=x")
    assert done.stdout.split() == [receiver]


def test_pagerduty_slack_and_mail_are_there_and_their_secrets_are_files() -> None:
    kinds = {kind for receiver in CONFIG["receivers"] for kind in receiver if kind != "name"}
    assert kinds == {"pagerduty_configs", "slack_configs", "email_configs"}
    text = PATH.read_text()
    files = ("slack_api_url_file", "smtp_auth_password_file", "routing_key_file")
    assert all(f"{name}: /etc/alertmanager/secrets/" in text for name in files)
    for plain in ("slack_api_url:", "smtp_auth_password:", "routing_key:", "api_url:"):
        assert plain not in text


def test_inhibitions_name_alerts_that_there_are() -> None:
    names = {alert["alert"] for alert in ALERTS}
    for rule in CONFIG["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            label, operator, value = matcher.split(" ", 2)
            if label == "alertname":
                assert [name for name in names if re.fullmatch(value.strip('"'), name)], matcher
                assert operator in ("=", "=~")
