"""What lets other hosts send spans, and the ClickHouse beside the stack: the two Compose files and the script."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from tests.dashboards.test_compose import PINNED, SERVICES, schema_errors
from tests.harness.collector_files import FOLDER

REMOTE, CLICKHOUSE = FOLDER / "docker-compose.remote.yml", FOLDER / "docker-compose.clickhouse.yml"


def services(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())["services"]


@pytest.mark.parametrize("path", [REMOTE, CLICKHOUSE], ids=lambda path: path.name)
def test_the_files_are_valid_by_the_compose_specification(path: Path, tmp_path: Path) -> None:
    whole = services(path)
    for name, service in whole.items():
        if name in SERVICES:  # merged over the stack's
            whole[name] = {"image": SERVICES[name]["image"], **service}
    (tmp_path / "compose.yml").write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "services": whole}))
    assert schema_errors(tmp_path / "compose.yml") == ""


def test_the_remote_file_adds_one_configuration_and_no_open_port() -> None:
    service = services(REMOTE)["collector"]
    before = SERVICES["collector"]["command"]
    assert service["command"] == [*before, "--config=/etc/collector/remote.yaml"]
    for port in service["ports"]:
        assert re.fullmatch(r"\$\{OTLP_ADDRESS:\?.+\}:531[78]:531[78]", port), "no default: nothing opens unasked"


def test_clickhouse_is_pinned_bounded_and_has_no_default_password() -> None:
    service = services(CLICKHOUSE)["clickhouse"]
    assert PINNED.match(service["image"])
    assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for each in services(CLICKHOUSE).values():
        assert each["environment"]["CLICKHOUSE_PASSWORD"].startswith("${CLICKHOUSE_PASSWORD:?")


def test_the_collector_waits_for_clickhouse() -> None:
    """The exporter creates its table at the start, and ends the Collector where it cannot."""
    found = services(CLICKHOUSE)
    assert found["collector"]["depends_on"] == {"clickhouse": {"condition": "service_healthy"}}
    assert "healthcheck" in found["clickhouse"]


def test_each_variable_of_the_clickhouse_exporter_is_given() -> None:
    named = set(re.findall(r"\$\{env:(\w+)\}", (FOLDER / "to-clickhouse.yaml").read_text()))
    assert named == services(CLICKHOUSE)["collector"]["environment"].keys()


def make_secrets(folder: Path, *hosts: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(FOLDER / "make_secrets.sh", folder)
    command = ["sh", str(folder / "make_secrets.sh"), *hosts]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_secrets_are_made_once_for_the_names_given(tmp_path: Path) -> None:
    done = make_secrets(tmp_path, "collector.example.com", "10.0.0.5", "fd00::5")
    assert done.returncode == 0, done.stderr
    made = {path.name: path for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == {"tls.crt", "tls.key", "token"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in made.values())
    # The extension takes each line as a token: an empty one after a line's end would let anyone in.
    assert re.fullmatch("[0-9a-f]{64}", made["token"].read_text())
    certificate = x509.load_pem_x509_certificate(made["tls.crt"].read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["collector.example.com"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "fd00::5"]

    again = make_secrets(tmp_path, "other.example.com")
    assert again.returncode == 1
    assert "remove it first" in again.stderr


def test_a_name_is_required_and_a_bad_one_is_reported(tmp_path: Path) -> None:
    assert make_secrets(tmp_path).returncode == 2
    failed = make_secrets(tmp_path, "1.2.3")
    assert failed.returncode == 1
    assert failed.stderr
    assert not list((tmp_path / "secrets").iterdir())
