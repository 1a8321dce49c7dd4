"""The Collector's and Tempo's files by their documented fields: the tests have neither binary.

Each table lists the fields that we use of those that a component's page documents. A field that is not in its table is
a mistake, or must be looked up and added. The pages are those of the versions that docker-compose.otel.yml pins.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from corevital_otel.report import Health, RequestReport, Risk
from corevital_otel.spans.attributes import span_attributes

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "dashboards/collector"
Config = dict[str, Any]

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
    "receivers/otlp": (CORE + "receiver/otlpreceiver", {"protocols.grpc.endpoint", "protocols.http.endpoint"}),
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
        {"api.key", "api.site", "api.fail_on_invalid_key", *QUEUE},
    ),
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


def merged(base: Config, over: Config) -> Config:
    """As the Collector merges several ``--config``: maps key by key, anything else replaced."""
    found = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


BASE: Config = yaml.safe_load((FOLDER / "collector.yaml").read_text())
CONFIGS = {file.stem: merged(BASE, yaml.safe_load(file.read_text())) for file in sorted(FOLDER.glob("to-*.yaml"))}
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
        if ends != ({"traces"}, {"metrics"}):
            yield f"{component} must lead from traces to metrics"
    queues = [(exporter or {}).get("sending_queue") for exporter in config["exporters"].values()]
    used |= {f"extensions/{queue['storage']}" for queue in queues if queue}
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
    config["service"]["pipelines"]["traces/kept"]["processors"].append("sampling")


def break_storage(config: Config) -> None:
    config["exporters"]["otlp_grpc/tempo"]["sending_queue"]["storage"] = "disk"


def break_order(config: Config) -> None:
    config["service"]["pipelines"]["traces/kept"]["processors"].reverse()


@pytest.mark.parametrize(
    "harm", [break_field, break_policy, break_component, break_pipeline, break_storage, break_order]
)
def test_a_wrong_file_is_caught(harm: Callable[[Config], None]) -> None:
    broken = copy.deepcopy(CONFIGS["to-tempo"])
    harm(broken)
    assert faults(broken)


@each
def test_every_exporter_of_traces_keeps_its_queue_on_disk(name: str) -> None:
    for exporter in CONFIGS[name]["service"]["pipelines"]["traces/kept"]["exporters"]:
        assert CONFIGS[name]["exporters"][exporter]["sending_queue"]["storage"] == "file_storage"


def test_each_choice_of_the_compose_file_exists() -> None:
    assert CONFIGS.keys() == {"to-tempo", "to-langfuse", "to-datadog"}
    assert all(
        "otlp_grpc/tempo" in config["service"]["pipelines"]["traces/kept"]["exporters"] for config in CONFIGS.values()
    )


def policies_that_keep(attributes: dict[str, Any]) -> set[str]:
    """Names of the attribute policies that match a span, as the processor's documentation describes."""
    kept = set()
    for policy in BASE["processors"]["tail_sampling"]["policies"]:
        settings = policy.get(policy["type"])
        if policy["type"] == "boolean_attribute":
            matches = attributes.get(settings["key"]) is settings["value"]
        elif policy["type"] == "string_attribute":
            matches = attributes.get(settings["key"]) in settings["values"]
        elif policy["type"] == "ottl_condition":
            (condition,) = settings["span"]
            key, threshold = re.fullmatch(
                r'attributes\["([\w.]+)"\] != nil and attributes\["\1"\] >= ([\d.]+)', condition
            ).groups()
            matches = key in attributes and attributes[key] >= float(threshold)
        else:
            continue
        if matches:
            kept.add(policy["name"])
    return kept


@pytest.mark.parametrize(
    ("made", "policies"),
    [
        ({"risk": Risk(score=0.71, level="high")}, {"risk-score", "risk-level"}),
        ({"risk": Risk(score=0.4, level="high")}, {"risk-level"}),  # by the user's own threshold
        ({"health": Health(nan_detected=True)}, {"nan"}),
        ({"health": Health(inf_detected=True)}, {"inf"}),
        ({"health": Health(repetition_loop_detected=True)}, {"loop"}),
        ({"health": Health(sustained_high_entropy=True)}, {"high-entropy"}),
        ({"health": Health(distribution_collapsed=True)}, {"collapsed"}),
        ({"health": Health(alarm_raised=True, alarm_onset=3, alarm_signal="entropy_max")}, {"alarm"}),
        ({"health": Health(alarm_signal="entropy_max")}, set()),
        ({"health": Health(traffic_shifted=True)}, set()),
        ({"incomplete": True}, {"incomplete"}),
        ({"risk": Risk(score=0.2, level="low"), "health": Health(truncated=True)}, set()),
        ({"risk": Risk(score=None, level="unknown")}, set()),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_the_attributes_we_send_keep_every_span_at_risk(
    report: Callable[..., RequestReport], made: dict[str, Any], policies: set[str]
) -> None:
    assert policies_that_keep(span_attributes(report(**made))) == policies


def test_dimensions_of_span_metrics_are_attributes_of_ours(report: Callable[..., RequestReport]) -> None:
    names = {dimension["name"] for dimension in BASE["connectors"]["span_metrics"]["dimensions"]}
    assert names <= span_attributes(report()).keys()
    assert "gen_ai.response.id" not in names


def test_tempo_has_documented_fields_only() -> None:
    config = yaml.safe_load((ROOT / "dashboards/tempo/tempo.yaml").read_text())
    assert set(fields(config)) == TEMPO
    assert config["storage"]["trace"]["local"]["path"].startswith("/var/tempo/"), "its volume"
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
