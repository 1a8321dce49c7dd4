"""docker-compose.otel.yml by its schema, by Compose and by its documented behaviour. There is no engine."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.dashboards.tools import run

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


def compose(checkout: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Compose itself, without an engine, in ``checkout`` with its .env."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(checkout), **variables}
    return run("docker-compose", "--project-directory", checkout, *arguments, env=environment)


@pytest.mark.parametrize("profiles", [(), ("vllm",), ("langfuse",), ("vllm", "langfuse")])
@pytest.mark.parametrize(
    "files", [(COMPOSE,), (COMPOSE, PROXY)], ids=lambda files: "+".join(file.name for file in files)
)
def test_compose_accepts_it(checkout: Path, files: tuple[Path, ...], profiles: tuple[str, ...]) -> None:
    make_env(checkout)
    chosen = [f"--file={file}" for file in files] + [f"--profile={profile}" for profile in profiles]
    sso = dict.fromkeys(required(PROXY), "x")
    done = compose(checkout, *chosen, "config", "--quiet", **sso)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_env_file_is_named_whatever_is_started(checkout: Path) -> None:
    """Go's maps have no order: without STACK_NAME, Compose named one of all variables by chance."""
    for _ in range(3):
        done = compose(checkout, f"--file={COMPOSE}", "config", "--quiet")
        assert done.returncode != 0
        assert "there is no .env" in done.stderr
        assert "run sh dashboards/make_env.sh" in done.stderr


def test_arguments_of_vllm_and_gpus(checkout: Path) -> None:
    make_env(checkout)
    arguments = '--max-model-len 4096 --served-model-name "a b"'
    options = (f"--file={COMPOSE}", "--profile=vllm", "config", "--format=json")
    done = compose(checkout, *options, VLLM_ARGS=arguments, VLLM_GPUS="2", VLLM_PORT="8001")
    service = json.loads(done.stdout)["services"]["vllm"]
    assert service["command"][1:] == ["--max-model-len", "4096", "--served-model-name", "a b"]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    assert service["ports"][0]["published"] == "8001"
    plain = json.loads(compose(checkout, *options).stdout)["services"]["vllm"]
    assert plain["deploy"]["resources"]["reservations"]["devices"][0]["count"] == -1, "all of the host"
    assert plain["command"] == ["Qwen/Qwen3-0.6B"]


@each
def test_ports_are_on_loopback_only(name: str) -> None:
    for port in ALL[name].get("ports", []):
        address, published = r"(127\.0\.0\.1|\$\{PUBLIC_ADDRESS:-127\.0\.0\.1\})", r"(\d+|\$\{[A-Z_]+_PORT:-\d+\})"
        assert re.match(rf"^{address}:{published}:\d+$", port), port


def test_no_service_bypasses_the_published_ports() -> None:
    assert not [name for name, service in ALL.items() if service.get("network_mode") or service.get("privileged")]


@each
def test_images_are_pinned(name: str) -> None:
    service = ALL[name]
    base = service.get("build", {}).get("args", {}).get("BASE", "")
    image = re.sub(r"^\$\{\w+:-(.+)\}$", r"\1", base) or service["image"]
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
    assert {name for name, value in example if value} == {"STACK_NAME"}


def make_env(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(folder / "dashboards/make_env.sh")]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "dashboards").mkdir()
    shutil.copy(ROOT / "dashboards/make_env.sh", tmp_path / "dashboards")
    shutil.copy(ROOT / ".env.example", tmp_path)
    return tmp_path


def variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def test_each_secret_is_made_once_and_differs(checkout: Path) -> None:
    assert make_env(checkout).returncode == 0
    made = variables((checkout / ".env").read_text())
    assert made.keys() == {*required(COMPOSE), "LANGFUSE_BASIC_AUTH"}
    assert made.pop("STACK_NAME") == "corevital"
    assert len(set(made.values())) == len(made)
    assert all(len(value) >= 64 for value in made.values())
    assert re.fullmatch("[0-9a-f]{64}", made["LANGFUSE_ENCRYPTION_KEY"])
    public = SERVICES["langfuse-web"]["environment"]["LANGFUSE_INIT_PROJECT_PUBLIC_KEY"]
    assert base64.b64decode(made["LANGFUSE_BASIC_AUTH"]).decode() == f"{public}:{made['LANGFUSE_PROJECT_SECRET']}"
    assert (checkout / ".env").stat().st_mode & 0o77 == 0
    assert not list(checkout.glob(".env.new*"))


def test_an_upgrade_adds_what_is_new_and_keeps_the_rest(checkout: Path) -> None:
    old = "# mine\nGRAFANA_ADMIN_PASSWORD=mine=x y\nKEEP_PERCENT=50\nVLLM_API_KEY=\nLANGFUSE_PROJECT_SECRET=sk-lf-old"
    (checkout / ".env").write_text(old)
    again = make_env(checkout)
    assert again.returncode == 0, again.stderr
    text = (checkout / ".env").read_text()
    assert text.startswith(
        "# mine\nGRAFANA_ADMIN_PASSWORD=mine=x y\nKEEP_PERCENT=50\nLANGFUSE_PROJECT_SECRET=sk-lf-old\n"
    )
    made = variables(text)
    assert made.keys() == {*required(COMPOSE), "LANGFUSE_BASIC_AUTH", "KEEP_PERCENT"}
    assert all(made.values())
    assert base64.b64decode(made["LANGFUSE_BASIC_AUTH"]).decode() == "pk-lf-corevital:sk-lf-old"
    assert len(re.findall("^VLLM_API_KEY=", text, re.MULTILINE)) == 1
    named = again.stdout.removeprefix("added to .env: ").split()
    assert set(named) == made.keys() - {"GRAFANA_ADMIN_PASSWORD", "KEEP_PERCENT", "LANGFUSE_PROJECT_SECRET"}


def test_lines_as_compose_reads_them_are_kept(checkout: Path) -> None:
    old = (
        'export GRAFANA_ADMIN_PASSWORD=mine\n  VLLM_API_KEY = "a b" # of clients\n'
        "LANGFUSE_PROJECT_SECRET='sk-lf-old'\n"
        '\texport  LANGFUSE_SALT=\nLANGFUSE_ENCRYPTION_KEY="" # none\nSTACK_NAME=mine # the first\n'
        "LANGFUSE_REDIS_PASSWORD=#1\n"
    )
    (checkout / ".env").write_text(old)
    (checkout / ".env").chmod(0o640)
    again = make_env(checkout)
    assert again.returncode == 0, again.stderr
    text = (checkout / ".env").read_text()
    kept = [line for line in old.splitlines() if not re.search("SALT|ENCRYPTION", line)]
    assert text.splitlines()[: len(kept)] == kept
    for name in {*required(COMPOSE), "LANGFUSE_BASIC_AUTH"}:
        assert len(re.findall(rf"^\s*(?:export\s+)?{name}\s*=", text, re.MULTILINE)) == 1, name
    made = variables(text)
    assert base64.b64decode(made["LANGFUSE_BASIC_AUTH"]).decode() == "pk-lf-corevital:sk-lf-old"
    assert len(made["LANGFUSE_SALT"]) == len(made["LANGFUSE_ENCRYPTION_KEY"]) == 64
    assert (checkout / ".env").stat().st_mode & 0o777 == 0o640
    assert make_env(checkout).stdout == ".env has everything; nothing was changed\n"


def test_a_complete_env_file_is_left_alone(checkout: Path) -> None:
    make_env(checkout)
    before = (checkout / ".env").read_text()
    again = make_env(checkout)
    assert (again.returncode, again.stdout) == (0, ".env has everything; nothing was changed\n")
    assert (checkout / ".env").read_text() == before


def test_storage_is_bounded_by_time_and_where_possible_by_size() -> None:
    flags = " ".join(SERVICES["prometheus"]["command"])
    assert "--storage.tsdb.retention.time=" in flags
    assert "--storage.tsdb.retention.size=" in flags
    assert any(flag.startswith("--data.retention=") for flag in SERVICES["alertmanager"]["command"])
    assert SERVICES["vllm"]["environment"].keys() >= {"COREVITAL_DB_RETENTION_DAYS", "COREVITAL_DB_MAX_MB"}
    assert "--maxmemory" in SERVICES["langfuse-redis"]["command"][2]


def test_vllm_is_counted_once() -> None:
    assert SERVICES["vllm"]["environment"]["OTEL_METRICS_EXPORTER"] == "none"


def number(text: str) -> float:
    """The default of a limit, in CPUs or GB."""
    default = re.sub(r"^\$\{\w+:-(.+)\}$", r"\1", text)
    return float(default.rstrip("mg")) / (1024 if default.endswith("m") else 1)


def test_the_stack_fits_a_host_of_four_cpus() -> None:
    """Docker refuses a limit of more CPUs than the host has. The page has the sums of memory."""
    limits = {name: service["deploy"]["resources"]["limits"] for name, service in ALL.items()}
    assert max(number(limit["cpus"]) for limit in limits.values()) <= 4
    memory = dict.fromkeys(("", "langfuse", "vllm"), 0.0)
    for name, service in SERVICES.items():
        memory[service.get("profiles", [""])[0]] += number(limits[name]["memory"])
    assert memory[""] < 6
    assert memory["vllm"] <= 12
    page = (ROOT / "docs/start/docker.md").read_text()
    assert f"at most 6 GB of memory (Langfuse {math.ceil(memory['langfuse'])} GB\nmore, vLLM 12 GB)" in page


def test_grafana_finds_its_home_and_its_dashboards() -> None:
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    provider = load(ROOT / "dashboards/provisioning/dashboards/corevital.yaml")["providers"][0]
    folder = ROOT / mounts[provider["options"]["path"]]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (folder / home.name).exists()
    assert str(home.parent) == provider["options"]["path"]
    assert len(list(folder.glob("*.json"))) >= 4
