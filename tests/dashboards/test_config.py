"""Rules and dashboards follow their one configuration, for Kubernetes too; and each flag has its alert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from dashboards.source import rules
from dashboards.source.config import CONFIG, FILE, Config, load, load_kubernetes
from pydantic import ValidationError
from tests.dashboards.fleets import Fleet, firing, fleet, named
from tests.dashboards.tools import DASHBOARDS, RULES, run

from corevital_otel import conventions


def test_what_the_file_says_is_in_rules_and_dashboards(tmp_path: Path) -> None:
    changed = (
        FILE.read_text()
        .replace('server = ".*vllm.*"', 'server = "llama"')
        .replace('cluster = "cluster"', 'cluster = "region"')
    )
    changed = changed.replace("loop_share = 0.2", "loop_share = 0.9").replace(
        "http://localhost:3000", "https://grafana.example"
    )
    (tmp_path / "config.toml").write_text(changed)
    config = load(tmp_path / "config.toml")
    assert config != CONFIG
    files = []
    for name, text in rules.files(config).items():
        files.append(tmp_path / name)
        files[-1].write_text(text)
        assert "localhost:3000" not in text
        assert "cluster," not in text
    assert run("promtool", "check", "rules", *files).returncode == 0
    half = fleet(30).loops("i0", "0+5x120").series
    assert named(firing(half, [35], tmp_path)[35]) == {("CorevitalInstanceLoops", "i0")}
    assert named(firing(half, [35], tmp_path, files)[35]) == set()
    shown = (DASHBOARDS / "source/queries.py").read_text() + (DASHBOARDS / "source/frame.py").read_text()
    assert 'job="vllm"' not in shown
    assert "CONFIG.targets.selector" in shown


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("first_token_s = 2.5", "first_token_s = 2.4"),
        ("loop_share = 0.05", "loop_share = 5"),
        ('deploy = "10m"', 'deploy = "ten minutes"'),
        ('cluster = "cluster"', 'cluster = "my cluster"'),
        ("cores = 0.8", "coers = 0.8"),
        ("http://localhost:3000", "localhost:3000"),
    ],
)
def test_a_wrong_value_is_refused(old: str, new: str, tmp_path: Path) -> None:
    text = FILE.read_text()
    assert old in text
    (tmp_path / "config.toml").write_text(text.replace(old, new))
    with pytest.raises(ValidationError):
        load(tmp_path / "config.toml")


def test_kubernetes_gets_the_same_rules_as_one_resource(tmp_path: Path) -> None:
    config: Config = load_kubernetes()
    made = yaml.safe_load((DASHBOARDS / "kubernetes/prometheusrule.yaml").read_text())
    assert (made["apiVersion"], made["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert set(made) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(made["spec"]) == {"groups"}
    path = tmp_path / "all.rules.yml"
    path.write_text(json.dumps(made["spec"]))
    done = run("promtool", "check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    ours = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    names = {rule.get("alert", rule.get("record")) for group in ours for rule in group["rules"]}
    assert {
        rule.get("alert", rule.get("record")) for group in made["spec"]["groups"] for rule in group["rules"]
    } == names
    assert config.labels.server == ("namespace", "job", "pod", "instance")
    pod = {"namespace": "llm", "pod": "vllm-0"}
    found = firing(one_of_thirty_in(pod).series, [35], tmp_path, [path])[35]
    assert [(alert["alertname"], alert["pod"], alert["namespace"]) for alert in found] == [
        ("CorevitalInstanceLoops", "vllm-0", "llm")
    ]


def one_of_thirty_in(labels: dict[str, str]) -> Fleet:
    made = Fleet()
    for number in range(30):
        made.server(f"i{number}", namespace=labels["namespace"], pod=f"vllm-{number}")
    return made.loops("i0", "0x20 0+10x100")


ALERT_OF_FLAG = {
    "nan_detected": "CorevitalNaNLogits",
    "inf_detected": "CorevitalInfLogits",
    "repetition_loop_detected": "CorevitalLoopShareHigh",
    "truncated": "CorevitalTruncationRising",
    "sustained_high_entropy": "CorevitalWarningShareRising",
    "distribution_collapsed": "CorevitalWarningShareRising",
    "alarm_raised": "CorevitalWarningShareRising",
    "traffic_shifted": "CorevitalTrafficShifted",
}


@pytest.mark.parametrize("flag", [*conventions.FLAGS, *conventions.CONDITIONS])
def test_every_flag_has_an_alert_or_a_reason_why_not(flag: str) -> None:
    table = (
        (DASHBOARDS.parent / "docs/operate/dashboards.md")
        .read_text()
        .partition("| flag | alert |")[2]
        .partition("\n\n")[0]
    )
    (row,) = [line for line in table.splitlines() if line.startswith(f"| `{flag}`")]
    alert = ALERT_OF_FLAG.get(flag)
    if alert is None:
        assert "none: " in row
    else:
        assert f"`{alert}`" in row
        text = "".join(path.read_text() for path in RULES)
        assert f"alert: {alert}" in text
        assert flag in text
