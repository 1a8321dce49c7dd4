"""Shared by the dashboards' tests: their files, promtool and amtool, and the series that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from corevital_otel.metrics.instruments import INSTRUMENTS

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"
RULES = sorted((DASHBOARDS / "prometheus").glob("*.rules.yml"))
FILES = {path.stem: json.loads(path.read_text()) for path in sorted((DASHBOARDS / "grafana").glob("*.json"))}
"""The dashboards, by uid."""
RULE_TESTS = sorted((DASHBOARDS / "prometheus/tests").glob("*.test.yml"))

UNPACKED = (".venv/debian/usr/bin", ".venv-kube/debian/usr/bin")

SERIES_OF_OTHERS = {
    "up",
    "ALERTS",
    "ALERTS_FOR_STATE",
    "scrape_duration_seconds",
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:num_preemptions_total",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:request_success_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_count",
    "http_requests_total",
    "otelcol_receiver_refused_spans",
    "otelcol_receiver_refused_spans_total",
    "otelcol_receiver_failed_spans_total",
    "otelcol_exporter_send_failed_spans",
    "otelcol_exporter_send_failed_spans_total",
    "otelcol_exporter_enqueue_failed_spans",
    "otelcol_exporter_enqueue_failed_spans_total",
    "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early",
    "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early_total",
    "otelcol_exporter_queue_size",
    "otelcol_exporter_queue_capacity",
    "tempo_discarded_spans_total",
    "tempo_ingester_failed_flushes_total",
    "prometheus_config_last_reload_successful",
    "prometheus_rule_evaluation_failures_total",
    "prometheus_rule_group_iterations_missed_total",
    "prometheus_tsdb_wal_writes_failed_total",
    "prometheus_notifications_dropped_total",
    "prometheus_notifications_alertmanagers_discovered",
    "alertmanager_config_last_reload_successful",
    "alertmanager_notifications_failed_total",
    "grafana_http_request_duration_seconds_count",
    "traces_span_metrics_duration_seconds_bucket",
}


def run(tool: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool of Debian's packages as ``make`` unpacks them, or the one on PATH; in ``env``, by default this one."""
    unpacked = [path for folder in UNPACKED if (path := ROOT / folder / tool).exists()]
    binary = unpacked[0] if unpacked else shutil.which(tool)
    if binary is None:
        pytest.skip(f"no {tool}: `make check-dashboards` unpacks Debian's where apt is; elsewhere install it")
    command = [str(binary), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env)


def unparsable(queries: list[str], folder: Path) -> str:
    """promtool's errors on PromQL that does not parse; empty if all parses."""
    rules = [{"record": f"query:number:{at}", "expr": query} for at, query in enumerate(queries)]
    path = folder / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))  # JSON is YAML
    done = run("promtool", "check", "rules", path)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def known_series() -> set[str]:
    """Series that exist: ours by the table of instruments, what the rules record, and a few of others."""
    names = set(SERIES_OF_OTHERS)
    for found in INSTRUMENTS.values():
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[found.kind]
        names |= {found.prometheus + suffix for suffix in suffixes}
    return names | set(re.findall(r"- record: (\S+)", "".join(path.read_text() for path in RULES)))


def series_in(query: str) -> set[str]:
    """Names of the series in a PromQL query: what stands before a selector or a range, or alone."""
    bare = re.sub(r'"[^"]*"|\b(by|on|group_left|group_right) \([^)]*\)', "", query)
    prefix = "corevital|gen_ai|model:|instance:|vllm:|up|ALERTS|scrape|traces|http_"
    prefix += "|otelcol_|tempo_|prometheus_|alertmanager_|grafana_"
    return set(re.findall(rf"\b((?:{prefix})[\w:]*)(?=[\s{{\[),]|$)", bare))
