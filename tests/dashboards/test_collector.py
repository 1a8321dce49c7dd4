"""The Collector's and Tempo's files by their documented fields. test_core_collector.py runs the core parts.

Each table lists the fields that we use of those that a component's page documents. A field that is not in its table is
a mistake, or must be looked up and added. The pages are those of the versions that docker-compose.otel.yml pins.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.harness.collector_files import FOLDER, Config, load, stack

from corevital_otel import conventions
from corevital_otel.report import RequestReport
from corevital_otel.spans.attributes import span_attributes

ROOT = Path(__file__).resolve().parents[2]

CORE = "https://github.com/open-telemetry/opentelemetry-collector/tree/v0.157.0/"
CONTRIB = "https://github.com/open-telemetry/opentelemetry-collector-contrib/tree/v0.157.0/"
# exporter/exporterhelper and config/configretry, that exporters share
QUEUE = {"sending_queue.storage", "sending_queue.queue_size", "retry_on_failure.max_elapsed_time"}
POLICIES = {
    "name",
    "type",
    "ottl_condition.error_mode",
    "ottl_condition.span[]",
    "string_attribute.key",
    "string_attribute.values[]",
    "boolean_attribute.key",
    "boolean_attribute.value",
    "status_code.status_codes[]",
    "latency.threshold_ms",
    "probabilistic.sampling_percentage",
}
DOCUMENTED: dict[str, tuple[str, set[str]]] = {
    "receivers/otlp": (
        CORE + "receiver/otlpreceiver",
        {
            f"protocols.{protocol}.{field}"
            for protocol in ("grpc", "http")
            for field in ("endpoint", "tls.cert_file", "tls.key_file", "tls.min_version", "auth.authenticator")
        },
    ),
    "processors/memory_limiter": (
        CORE + "processor/memorylimiterprocessor",
        {"check_interval", "limit_percentage", "spike_limit_percentage"},
    ),
    "processors/batch": (
        CORE + "processor/batchprocessor",
        {"timeout", "send_batch_size", "send_batch_max_size"},
    ),
    "processors/tail_sampling": (
        CONTRIB + "processor/tailsamplingprocessor",
        {
            "decision_wait",
            "num_traces",
            "decision_cache.sampled_cache_size",
            "decision_cache.non_sampled_cache_size",
            *(f"policies[].{field}" for field in POLICIES),
        },
    ),
    "connectors/span_metrics": (
        CONTRIB + "connector/spanmetricsconnector",
        {
            "namespace",
            "histogram.unit",
            "histogram.explicit.buckets[]",
            "dimensions[].name",
            "exemplars.enabled",
            "exemplars.max_per_data_point",
            "aggregation_cardinality_limit",
            "metrics_flush_interval",
            "metrics_expiration",
        },
    ),
    "processors/filter": (CONTRIB + "processor/filterprocessor", {"error_mode", "trace_conditions[]"}),
    "connectors/forward": (CORE + "connector/forwardconnector", set()),
    "connectors/datadog": (CONTRIB + "connector/datadogconnector", set()),
    "exporters/prometheus": (CONTRIB + "exporter/prometheusexporter", {"endpoint", "enable_open_metrics"}),
    "exporters/nop": (CORE + "exporter/nopexporter", set()),
    "exporters/otlp_grpc": (CORE + "exporter/otlpexporter", {"endpoint", "tls.insecure", *QUEUE}),
    "exporters/otlp_http": (
        CORE + "exporter/otlphttpexporter",
        {"endpoint", "headers.Authorization", "headers.x-langfuse-ingestion-version", *QUEUE},
    ),
    "exporters/datadog": (
        CONTRIB + "exporter/datadogexporter",
        {
            "api.key",
            "api.site",
            "api.fail_on_invalid_key",
            "metrics.sums.cumulative_monotonic_mode",
            "metrics.histograms.mode",
            *QUEUE,
        },
    ),
    "exporters/clickhouse": (
        CONTRIB + "exporter/clickhouseexporter",
        {
            "endpoint",
            "username",
            "password",
            "database",
            "ttl",
            "create_schema",
            "sending_queue.batch.min_size",
            "sending_queue.batch.flush_timeout",
            *QUEUE,
        },
    ),
    "extensions/bearertokenauth": (CONTRIB + "extension/bearertokenauthextension", {"filename"}),
    "extensions/health_check": (CONTRIB + "extension/healthcheckextension", {"endpoint"}),
    "extensions/file_storage": (
        CONTRIB + "extension/storage/filestorage",
        {"directory", "create_directory", "compaction.on_start", "compaction.on_rebound", "compaction.directory"},
    ),
}
TELEMETRY = "telemetry.metrics.readers[].pull.exporter.prometheus."
SERVICE = {"extensions[]", TELEMETRY + "host", TELEMETRY + "port"}
"""https://opentelemetry.io/docs/collector/internal-telemetry/; pipelines are checked separately."""
TEMPO = {  # https://grafana.com/docs/tempo/v2.10.x/configuration/manifest/
    "server.http_listen_port",
    "distributor.receivers.otlp.protocols.grpc.endpoint",
    "distributor.max_attribute_bytes",
    "ingester.max_block_duration",
    "compactor.compaction.block_retention",
    "storage.trace.backend",
    "storage.trace.wal.path",
    "storage.trace.local.path",
    "metrics_generator.processor.local_blocks.filter_server_spans",
    "metrics_generator.processor.local_blocks.flush_to_storage",
    "metrics_generator.storage.path",
    "metrics_generator.traces_storage.path",
    "overrides.defaults.ingestion.rate_limit_bytes",
    "overrides.defaults.ingestion.burst_size_bytes",
    "overrides.defaults.ingestion.max_traces_per_user",
    "overrides.defaults.global.max_bytes_per_trace",
    "overrides.defaults.metrics_generator.processors[]",
    "usage_report.reporting_enabled",
}


def fields(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of all leaves; ``[]`` is an element of a list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from fields(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, f"{path}[]")
    elif path:
        yield path


BASE = load("collector.yaml")
CHOICES = {file.stem.removeprefix("to-") for file in FOLDER.glob("to-*.yaml")}
CONFIGS = {choice: stack(choice) for choice in sorted(CHOICES)} | {"remote": stack("tempo", "remote.yaml")}
each = pytest.mark.parametrize("name", CONFIGS)


KINDS = ("receivers", "processors", "connectors", "exporters", "extensions")


def component_faults(config: Config) -> Iterator[str]:
    """Components and fields that no page documents."""
    for section in config.keys() - {*KINDS, "service"}:
        yield f"{section}: unknown section"
    for kind in KINDS:
        for component, settings in config[kind].items():
            if (documented := DOCUMENTED.get(f"{kind}/{component.partition('/')[0]}")) is None:
                yield f"{kind}/{component}: unknown component"
            else:
                yield from (f"{component}.{field}" for field in fields(settings) if field not in documented[1])
    service = {name: value for name, value in config["service"].items() if name != "pipelines"}
    yield from (f"service.{field}" for field in fields(service) if field not in SERVICE)


def pipeline_faults(config: Config) -> Iterator[str]:
    """References without a definition, definitions without a reference, and a wrong order."""
    used = {f"extensions/{name}" for name in config["service"]["extensions"]}
    signals: dict[tuple[str, str], set[str]] = {}  # a connector, as exporter and as receiver
    for name, pipeline in config["service"]["pipelines"].items():
        yield from (f"{name}: no {role}" for role in ("receivers", "exporters") if not pipeline.get(role))
        if "memory_limiter" in pipeline.get("processors", [])[1:]:
            yield f"{name}: memory_limiter must come first"
        for role, components in pipeline.items():
            for component in components:
                kind = "connectors" if component in config["connectors"] else role
                used.add(f"{kind}/{component}")
                if kind == "connectors":
                    signals.setdefault((component, role), set()).add(name.partition("/")[0])
    for component in config["connectors"]:
        ends = signals.get((component, "exporters")), signals.get((component, "receivers"))
        target = "traces" if component == "forward" else "metrics"
        if ends != ({"traces"}, {target}):
            yield f"{component} must lead from traces to {target}"
    queues = [(exporter or {}).get("sending_queue") for exporter in config["exporters"].values()]
    used |= {f"extensions/{queue['storage']}" for queue in queues if queue}
    for receiver in config["receivers"].values():
        used |= {
            f"extensions/{settings['auth']['authenticator']}"
            for settings in receiver["protocols"].values()
            if "auth" in settings
        }
    defined = {f"{kind}/{component}" for kind in KINDS for component in config[kind]}
    yield from (f"{component} is not used" for component in defined - used)
    yield from (f"{component} is not defined" for component in used - defined)


def faults(config: Config) -> list[str]:
    return [*component_faults(config), *pipeline_faults(config)]


@each
def test_every_component_is_documented_defined_and_used(name: str) -> None:
    assert faults(CONFIGS[name]) == []


def break_field(config: Config) -> None:
    config["processors"]["tail_sampling"]["decision_time"] = "30s"


def break_policy(config: Config) -> None:
    config["processors"]["tail_sampling"]["policies"][0]["numeric"] = {"key": "a"}


def break_component(config: Config) -> None:
    config["exporters"]["otlp_grcp/tempo"] = config["exporters"].pop("otlp_grpc/tempo")


def break_pipeline(config: Config) -> None:
    config["service"]["pipelines"]["traces/sampled"]["processors"].append("sampling")


def break_authenticator(config: Config) -> None:
    config["receivers"]["otlp"]["protocols"]["grpc"]["auth"] = {"authenticator": "basicauth"}


def break_storage(config: Config) -> None:
    config["exporters"]["otlp_grpc/tempo"]["sending_queue"]["storage"] = "disk"


def break_order(config: Config) -> None:
    config["service"]["pipelines"]["metrics/otlp"]["processors"] = ["batch", "memory_limiter"]


@pytest.mark.parametrize(
    "harm",
    [break_field, break_policy, break_component, break_pipeline, break_authenticator, break_storage, break_order],
)
def test_a_wrong_file_is_caught(harm: Callable[[Config], None]) -> None:
    broken = copy.deepcopy(CONFIGS["tempo"])
    harm(broken)
    assert faults(broken)


def nulls(node: Any, path: str = "") -> Iterator[str]:
    """Where a value is null."""
    if node is None:
        yield path
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from nulls(value, f"{path}/{name}")


FILES = [*sorted(FOLDER.glob("*.yaml")), ROOT / "dashboards/kubernetes/chart/files/collector.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_component_is_null(path: Path) -> None:
    """The OpenTelemetry Operator drops a component whose value is null, and the Collector then refuses its pipelines.

    See https://github.com/open-telemetry/opentelemetry-operator/issues/3543.
    """
    assert list(nulls(yaml.safe_load(path.read_text()))) == []


@each
def test_every_exporter_of_traces_keeps_its_queue_on_disk(name: str) -> None:
    config = CONFIGS[name]
    exporters = {
        exporter
        for pipeline, parts in config["service"]["pipelines"].items()
        for exporter in parts["exporters"]
        if pipeline.startswith("traces/") and exporter not in config["connectors"]
    }
    assert exporters
    for exporter in exporters:
        assert config["exporters"][exporter]["sending_queue"]["storage"] == "file_storage"


@each
def test_memory_is_limited_once_before_spans_part(name: str) -> None:
    pipelines = CONFIGS[name]["service"]["pipelines"]
    first = [at for at, parts in pipelines.items() if "forward" in parts["exporters"]]
    assert first == ["traces/in"]
    assert pipelines["traces/in"]["processors"] == ["memory_limiter"]
    for at, parts in pipelines.items():
        if at.startswith("traces/") and at != "traces/in":
            assert parts["receivers"] == ["forward"], at


def test_each_choice_of_the_compose_file_exists() -> None:
    assert {"tempo", "langfuse", "langfuse-sampled", "datadog", "clickhouse"} == CHOICES
    for choice in CHOICES:
        for pipeline in ("traces/at-risk", "traces/sampled"):
            assert "otlp_grpc/tempo" in CONFIGS[choice]["service"]["pipelines"][pipeline]["exporters"]


def test_dimensions_of_span_metrics_are_attributes_of_ours(report: Callable[..., RequestReport]) -> None:
    names = {dimension["name"] for dimension in BASE["connectors"]["span_metrics"]["dimensions"]}
    assert names <= span_attributes(report()).keys()
    assert "gen_ai.response.id" not in names


def test_tempo_has_documented_fields_only() -> None:
    config = yaml.safe_load((ROOT / "dashboards/tempo/tempo.yaml").read_text())
    assert set(fields(config)) == TEMPO
    assert config["storage"]["trace"]["local"]["path"].startswith("/var/tempo/"), "its volume"
    longest = '[{"role": "assistant", "parts": [{"type": "text", "content": ""}]}]… [1000000 characters left out]'
    assert config["distributor"]["max_attribute_bytes"] > 6 * conventions.CONTENT_CHARACTERS + len(longest.encode())
    assert "local-blocks" in config["overrides"]["defaults"]["metrics_generator"]["processors"]


def test_grafanas_datasources_lead_to_one_another() -> None:
    sources = yaml.safe_load((ROOT / "dashboards/provisioning/datasources/corevital.yaml").read_text())["datasources"]
    by_uid = {source["uid"]: source for source in sources}
    assert by_uid.keys() == {"prometheus", "tempo", "alertmanager"}
    (exemplars,) = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["datasourceUid"] == "tempo"
    to_metrics = by_uid["tempo"]["jsonData"]["tracesToMetrics"]
    assert to_metrics["datasourceUid"] == "prometheus"
    assert all("$$__tags" in query["query"] for query in to_metrics["queries"]), (
        "Grafana reads $ as an environment variable"
    )
