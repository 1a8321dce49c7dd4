"""docker-compose.otel.yml by its schema and by its documented behaviour. The tests have no Docker."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.otel.yml"
PROXY = ROOT / "dashboards/proxy/docker-compose.proxy.yml"
PINNED = re.compile(r"^[a-z0-9./-]+:(v?\d+\.\d+[\w.-]*|RELEASE\.\d{4}[\w-]+)$")
WITHOUT_CLIENT = {"collector", "tempo"}
"""Their images hold only the server, so no check can run inside."""


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


SERVICES: dict[str, dict[str, Any]] = load(COMPOSE)["services"]
ALL = {**SERVICES, "proxy": load(PROXY)["services"]["proxy"]}
each = pytest.mark.parametrize("name", ALL)


def schema_errors(path: Path) -> str:
    """Errors by the Compose specification's JSON schema; empty if valid."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("path", [COMPOSE, PROXY], ids=lambda path: path.name)
def test_the_file_is_valid_by_the_compose_specification(path: Path) -> None:
    assert schema_errors(path) == ""


def test_the_schema_catches_a_wrong_field(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yml"
    wrong.write_text(COMPOSE.read_text().replace("    healthcheck:\n", "    healthchek:\n", 1))
    assert "healthchek" in schema_errors(wrong)


@each
def test_ports_are_on_loopback_only(name: str) -> None:
    for port in ALL[name].get("ports", []):
        assert re.match(r"^(127\.0\.0\.1|\$\{PUBLIC_ADDRESS:-127\.0\.0\.1\}):\d+:\d+$", port), port


def test_no_service_bypasses_the_published_ports() -> None:
    assert not [name for name, service in ALL.items() if service.get("network_mode") or service.get("privileged")]


@each
def test_images_are_pinned(name: str) -> None:
    service = ALL[name]
    build = service.get("build", {}).get("dockerfile_inline", "")
    images = re.findall(r"^FROM (\S+)$", build, re.MULTILINE) or [service["image"]]
    for image in images:
        assert PINNED.match(image), image


@each
def test_resources_are_limited_and_so_is_the_log(name: str) -> None:
    assert ALL[name]["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert ALL[name]["logging"]["options"].keys() == {"max-size", "max-file"}
    assert ALL[name]["restart"] == "unless-stopped"
    assert ALL[name]["security_opt"] == ["no-new-privileges:true"]


@each
def test_health_is_checked_inside_or_by_the_probe(name: str) -> None:
    check = ALL[name].get("healthcheck")
    if name == "probe":
        assert check["test"][0] == "CMD-SHELL"
        asked = set(re.findall(r"http://(\w+):\d+/", check["test"][1]))
        assert asked == WITHOUT_CLIENT
    elif name in WITHOUT_CLIENT:
        assert check == {"disable": True}
    else:
        assert check["test"][0] == "CMD", "a list also runs in images without a shell"
        assert check.keys() >= {"interval", "timeout", "retries", "start_period"}


@pytest.mark.parametrize("path", [COMPOSE, PROXY], ids=lambda path: path.name)
def test_everything_named_exists(path: Path) -> None:
    declared, used = set(load(path)["volumes"]), set()
    for name, service in load(path)["services"].items():
        assert set(service.get("depends_on", {})) <= ALL.keys(), name
        for dependency, condition in service.get("depends_on", {}).items():
            checked = not ALL[dependency]["healthcheck"].get("disable")
            assert checked or condition == {"condition": "service_started"}, f"{name} would wait forever"
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert volume.endswith(":ro"), volume
            else:
                used.add(source)
    assert used == declared


def test_every_host_name_is_a_service() -> None:
    """Host names in the settings of Prometheus, Grafana, the Collector and the services."""
    files = [COMPOSE, *(ROOT / "dashboards").glob("provisioning/**/*.yaml")]
    files += [*(ROOT / "dashboards/collector").glob("*.yaml"), ROOT / "dashboards/prometheus/prometheus.yml"]
    for file in files:
        text = re.sub(r"#.*", "", file.read_text())
        hosts = set(re.findall(r"(?:http|clickhouse)://([\w.-]+)", text)) | set(re.findall(r'\["([\w-]+):\d+"\]', text))
        assert hosts <= {*SERVICES, "localhost", "host.docker.internal"}, file.name


def environment(service: dict[str, Any]) -> dict[str, str]:
    return service.get("environment") or {}


@each
def test_no_secret_has_a_default(name: str) -> None:
    outgoing = {"DD_API_KEY", "HF_TOKEN", "LANGFUSE_BASIC_AUTH"}  # for other services; nothing here listens with them
    public = {"LANGFUSE_S3_EVENT_UPLOAD_ACCESS_KEY_ID", "LANGFUSE_INIT_PROJECT_PUBLIC_KEY"}
    secret = re.compile(r"PASSWORD|SECRET|KEY|SALT|AUTH$|TOKEN|DATABASE_URL")
    for variable, value in environment(ALL[name]).items():
        if secret.search(variable) and "OAUTH" not in variable and variable not in outgoing | public:
            assert re.search(r"\$\{\w+:\?.+\}", value), f"{variable} of {name}"


def required(path: Path) -> set[str]:
    return set(re.findall(r"\$\{(\w+):\?", path.read_text()))


def test_the_example_lists_every_secret_without_a_value() -> None:
    example = re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert required(COMPOSE) == {name for name, _ in example}
    assert {value for _, value in example} == {""}


def make_env(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(folder / "dashboards/make_env.sh")]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "dashboards").mkdir()
    shutil.copy(ROOT / "dashboards/make_env.sh", tmp_path / "dashboards")
    shutil.copy(ROOT / ".env.example", tmp_path)
    return tmp_path


def test_each_secret_is_made_once_and_differs(checkout: Path) -> None:
    assert make_env(checkout).returncode == 0
    made = dict(re.findall(r"^(\w+)=(.+)$", (checkout / ".env").read_text(), re.MULTILINE))
    assert made.keys() == {*required(COMPOSE), "LANGFUSE_BASIC_AUTH"}
    assert len(set(made.values())) == len(made)
    assert all(len(value) >= 64 for value in made.values())
    assert re.fullmatch("[0-9a-f]{64}", made["LANGFUSE_ENCRYPTION_KEY"])
    public = SERVICES["langfuse-web"]["environment"]["LANGFUSE_INIT_PROJECT_PUBLIC_KEY"]
    assert base64.b64decode(made["LANGFUSE_BASIC_AUTH"]).decode() == f"{public}:{made['LANGFUSE_PROJECT_SECRET']}"
    assert (checkout / ".env").stat().st_mode & 0o77 == 0
    assert not (checkout / ".env.new").exists()


def test_existing_secrets_are_kept(checkout: Path) -> None:
    (checkout / ".env").write_text("GRAFANA_ADMIN_PASSWORD=mine\n")
    again = make_env(checkout)
    assert again.returncode == 1
    assert "remove it first" in again.stderr
    assert (checkout / ".env").read_text() == "GRAFANA_ADMIN_PASSWORD=mine\n"


def test_storage_is_bounded_by_time_and_where_possible_by_size() -> None:
    flags = " ".join(SERVICES["prometheus"]["command"])
    assert "--storage.tsdb.retention.time=" in flags
    assert "--storage.tsdb.retention.size=" in flags
    assert any(flag.startswith("--data.retention=") for flag in SERVICES["alertmanager"]["command"])
    assert SERVICES["vllm"]["environment"].keys() >= {"COREVITAL_DB_RETENTION_DAYS", "COREVITAL_DB_MAX_MB"}
    assert "--maxmemory" in SERVICES["langfuse-redis"]["command"][2]


def test_vllm_runs_the_documented_command_and_counts_once() -> None:
    service = SERVICES["vllm"]
    assert [*service["entrypoint"], *service["command"][1:]] == ["vllm", "serve", "--logits-processor", "corevital"]
    assert service["environment"]["OTEL_METRICS_EXPORTER"] == "none"
    copied = re.findall(r"^COPY (.+) /src\S*$", service["build"]["dockerfile_inline"], re.MULTILINE)
    assert all((ROOT / path).exists() for line in copied for path in line.split())


def test_grafana_finds_its_home_and_its_dashboards() -> None:
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    provider = load(ROOT / "dashboards/provisioning/dashboards/corevital.yaml")["providers"][0]
    folder = ROOT / mounts[provider["options"]["path"]]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (folder / home.name).exists()
    assert str(home.parent) == provider["options"]["path"]
    assert len(list(folder.glob("*.json"))) >= 4
