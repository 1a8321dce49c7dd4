"""The core parts of our files in a real Collector: `make collector` builds it; without it these tests are skipped.

Contrib's components are left out (`core_parts`), so nothing is filtered or sampled here: both pipelines to Tempo pass
every span. What the policies keep is in test_sampling.py.
"""

from __future__ import annotations

import copy
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.conftest import emit
from tests.harness.collector import Sink
from tests.harness.collector_files import FOLDER, Config, stack
from tests.harness.processes import Group, environment, free_port, within

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.emitter import SpanEmitter

OTELCOL = FOLDER.parents[1] / ".venv-collector/otelcol"
CORE = {"otlp", "memory_limiter", "batch", "forward", "nop", "otlp_grpc", "otlp_http", "bearertokenauth"}
"""Component types of the built Collector; the last is a stand-in, see integration/harness/core_collector/main.go."""

pytestmark = pytest.mark.skipif(not OTELCOL.exists(), reason="no .venv-collector/otelcol: `make collector` builds it")


def core_parts(config: Config) -> Config:
    """A configuration without contrib's components, and without pipelines that have nothing else."""
    core = copy.deepcopy(config)
    for kind in ("receivers", "processors", "connectors", "exporters", "extensions"):
        core[kind] = {name: value for name, value in core[kind].items() if name.partition("/")[0] in CORE}
    known = {name for kind in ("receivers", "processors", "connectors", "exporters") for name in core[kind]}
    for parts in core["service"]["pipelines"].values():
        for role, names in parts.items():
            parts[role] = [name for name in names if name in known]
    pipelines = core["service"]["pipelines"].items()
    core["service"] = {
        "extensions": [name for name in core["service"]["extensions"] if name in core["extensions"]],
        "telemetry": {"metrics": {"level": "none"}},
        "pipelines": {name: parts for name, parts in pipelines if parts["receivers"] and parts["exporters"]},
    }
    for exporter in core["exporters"].values():
        if exporter:
            del exporter["sending_queue"]["storage"]  # on disk, by an extension of contrib's
    return core


class Running:
    """A running Collector, with a sink in each backend's place, and its ports by name."""

    def __init__(self, tempo: Sink, langfuse: Sink) -> None:
        self.tempo, self.langfuse = tempo, langfuse
        self.ports = {name: free_port() for name in ("grpc", "http", "remote grpc", "remote http", "tempo")}

    def config(self, choice: str) -> Config:
        """The core parts of a choice of ``TRACES_TO``. Tempo's place has an OTLP receiver that passes on by HTTP."""
        core = core_parts(stack(choice))
        for protocol in ("grpc", "http"):
            core["receivers"]["otlp"]["protocols"][protocol]["endpoint"] = f"127.0.0.1:{self.ports[protocol]}"
        core["processors"]["batch"]["timeout"] = "100ms"
        core["exporters"]["otlp_grpc/tempo"]["endpoint"] = f"127.0.0.1:{self.ports['tempo']}"
        core["receivers"]["otlp/tempo"] = {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{self.ports['tempo']}"}}}
        core["exporters"]["otlp_http/tempo-sink"] = {"endpoint": f"http://127.0.0.1:{self.tempo.port}"}
        core["service"]["pipelines"]["traces/tempo"] = {
            "receivers": ["otlp/tempo"],
            "exporters": ["otlp_http/tempo-sink"],
        }
        if "otlp_http/langfuse" in core["exporters"]:
            address = core["exporters"]["otlp_http/langfuse"]
            address["endpoint"] = address["endpoint"].replace("langfuse-web:3000", f"127.0.0.1:{self.langfuse.port}")
        return core


@contextmanager
def collector(folder: Path, choice: str, remote: Callable[[Running, str], str] | None = None) -> Iterator[Running]:
    """A Collector with a choice's files; ``remote`` turns remote.yaml's text into what is merged over them."""
    running = Running(Sink(), Sink())
    path = folder / "collector.json"
    path.write_text(json.dumps(running.config(choice)))  # JSON is YAML
    command = [str(OTELCOL), f"--config={path}"]
    if remote is not None:
        (folder / "remote.yaml").write_text(remote(running, (FOLDER / "remote.yaml").read_text()))
        command.append(f"--config={folder / 'remote.yaml'}")
    group = Group(command, environment({"LANGFUSE_BASIC_AUTH": "cGs6c2s="}), folder, folder / "otelcol.log")
    try:
        deadline = time.monotonic() + 30
        while "Everything is ready" not in group.text():
            assert group.process.poll() is None, group.text()
            assert time.monotonic() < deadline, group.text()
            time.sleep(0.05)
        yield running
    finally:
        group.stop(10)
        running.tempo.close()
        running.langfuse.close()


Deliver = Callable[..., tuple[str, Counters]]


@pytest.fixture
def deliver(monkeypatch: pytest.MonkeyPatch, report: Callable[..., RequestReport]) -> Deliver:
    """Sends one span with these variables; returns its id and the counters."""

    def delivered(**variables: str) -> tuple[str, Counters]:
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
        counters = Counters()
        emitter = SpanEmitter(counters)
        ids = emit(emitter, report())
        emitter.shutdown(10)
        return ids.span_id, counters

    return delivered


EXPORTED = "corevital.telemetry.exported"


@pytest.mark.parametrize("choice", ["tempo", "langfuse", "langfuse-sampled"])
def test_spans_go_through_the_pipelines_to_each_backend(tmp_path: Path, deliver: Deliver, choice: str) -> None:
    with collector(tmp_path, choice) as running:
        protocols = {"grpc": "grpc", "http": "http/protobuf"}
        sent = [
            deliver(ENDPOINT=f"http://127.0.0.1:{running.ports[port]}", PROTOCOL=protocol)[0]
            for port, protocol in protocols.items()
        ]
        expected = {"tempo": 0, "langfuse": 1, "langfuse-sampled": 2}[choice]
        # one through traces/at-risk, one through traces/sampled: a filter of contrib's parts them
        within(30, lambda: running.tempo.times.total() >= 4)
        within(30, lambda: running.langfuse.times.total() >= 2 * expected)
        time.sleep(1)  # one too many would come now
    assert running.tempo.times == dict.fromkeys(sent, 2)
    assert running.langfuse.times == (dict.fromkeys(sent, expected) if expected else {})
    for path, headers in running.langfuse.asked:
        assert path == "/api/public/otel/v1/traces"
        assert headers["Authorization"] == "Basic cGs6c2s="


def secrets(folder: Path, host: str) -> Path:
    """What make_secrets.sh makes for a host."""
    (folder / "make_secrets.sh").write_text((FOLDER / "make_secrets.sh").read_text())
    subprocess.run(["sh", str(folder / "make_secrets.sh"), host], check=True, capture_output=True, timeout=60)
    return folder / "secrets"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_other_hosts_need_the_certificate_and_the_token(tmp_path: Path, deliver: Deliver, protocol: str) -> None:
    made = secrets(tmp_path, "127.0.0.1")

    def remote(running: Running, text: str) -> str:
        text = text.replace("/etc/collector/secrets", str(made)).replace("[health_check, file_storage, ", "[")
        for port, name in (("5317", "remote grpc"), ("5318", "remote http")):
            text = text.replace(f"0.0.0.0:{port}", f"127.0.0.1:{running.ports[name]}")
        return text

    with collector(tmp_path, "tempo", remote) as running:
        port = running.ports["remote grpc" if protocol == "grpc" else "remote http"]
        right = {
            "PROTOCOL": protocol,
            "ENDPOINT": f"https://127.0.0.1:{port}",
            "CERTIFICATE": str(made / "tls.crt"),
            "HEADERS": f"Authorization=Bearer%20{(made / 'token').read_text()}",
        }
        refused = [{"HEADERS": "Authorization=Bearer%20guess"}, {"HEADERS": ""}]
        for wrong in refused:
            assert deliver(**(right | wrong))[1].get(EXPORTED) == 0
        span, counters = deliver(**right)
        running.tempo.wait_for(1)
    assert counters.get(EXPORTED) == 1
    assert set(running.tempo.times) == {span}
