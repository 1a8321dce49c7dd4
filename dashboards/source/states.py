"""PromQL of the first screen: what is wrong, where and since when; and of the engine beside corevital.

Where a thousand servers would draw a thousand lines, :func:`top` keeps those that matter over the range shown. A
table's column has a value for each row, NaN where there is none: Grafana merges columns by the labels that all have.
"""

from typing import Final

from dashboards.source.config import CONFIG
from dashboards.source.queries import INSTANCE, REQUESTS, of_requests, quantile, rate
from dashboards.source.queries import MODEL as _OF_MODEL

from corevital_otel.conventions import FAULT_FLAGS, FLAGS

LINES: Final = 10
"""Servers in one graph."""
_CLUSTER: Final = CONFIG.labels.cluster
SERVER: Final = f"{_CLUSTER}, {', '.join(CONFIG.labels.server)}"
MODEL: Final = f"{_CLUSTER}, gen_ai_request_model"
_ENGINE: Final = f'model_name=~"$model", {INSTANCE}'
_OBJECTIVES: Final = CONFIG.objectives

SERVER_STATE: Final = f"instance:corevital_server:state{{{INSTANCE}}}"
MODEL_STATE: Final = f"model:corevital_model:state{{{_OF_MODEL}}}"


def top(query: str, weight: str, lines: int = LINES) -> str:
    """The query's series of the servers whose ``weight`` is largest at the end of the range shown."""
    return f"{query} and on ({SERVER}) topk({lines}, {weight})"


def rate_by_server(metric: str, selector: str = REQUESTS) -> str:
    """A counter's rate on each of the servers where it gained most."""
    weight = f"sum by ({SERVER}) (increase({metric}{{{selector}}}[$__range] @ end()))"
    return top(rate(metric, selector, SERVER), weight)


def gauge_by_server(metric: str, selector: str = INSTANCE) -> str:
    """A gauge on each of the servers where it was highest."""
    weight = f"max by ({SERVER}) (max_over_time({metric}{{{selector}}}[$__range] @ end()))"
    return top(f"max by ({SERVER}) ({metric}{{{selector}}})", weight)


def of_server(query: str) -> str:
    """A column of the servers' table."""
    return f"({query}) or on ({SERVER}) NaN * {SERVER_STATE}"


def of_model(query: str) -> str:
    """A column of the models' table."""
    return f"({query}) or on ({MODEL}) NaN * {MODEL_STATE}"


# Alerts. Those without a model or a server are about all of them.

_OURS: Final = (
    'alertname=~"Corevital.*", alertname!="CorevitalWatchdog", '
    f'{_CLUSTER}=~"$cluster", gen_ai_request_model=~"$model|", instance=~"$instance|"'
)
_FIRING: Final = f'ALERTS{{{_OURS}, alertstate="firing"}}'
_SINCE: Final = f"(ALERTS_FOR_STATE{{{_OURS}}} and ignoring (alertstate) {_FIRING})"
_ALERT: Final = f"alertname, {_CLUSTER}, gen_ai_request_model, job, instance"


def firing(severity: str) -> str:
    """How many alerts of a severity fire: each once, whatever its windows."""
    found = f'ALERTS{{{_OURS}, alertstate="firing", severity="{severity}"}}'
    return f"count(max by ({_ALERT}) ({found})) or vector(0)"


ALERT_RANK: Final = (
    f"max by ({_ALERT}) (3 * "
    + _FIRING.replace('"firing"', '"firing", severity="critical"')
    + " or 2 * "
    + _FIRING.replace('"firing"', '"firing", severity="warning"')
    + f" or {_FIRING})"
)
ALERT_SINCE: Final = f"1000 * min by ({_ALERT}) {_SINCE}"
"""Milliseconds: when its condition became true, before it had held for long enough."""
ALERT_MARKS: Final = f"max by (alertname, severity) ({_FIRING})"

# Servers

SERVERS_UNWELL: Final = f"count({SERVER_STATE} > 0) or vector(0)"
SERVERS: Final = f"count({SERVER_STATE}) or vector(0)"
SERVER_STATES: Final = top(SERVER_STATE, f"sum_over_time({SERVER_STATE}[$__range] @ end())", 14)
SERVER_SINCE: Final = f"1000 * min by ({SERVER}) ({_SINCE} and on ({SERVER}) {SERVER_STATE})"
SERVER_ENDED: Final = rate("corevital_requests_total", by=SERVER)
_COUNTED: Final = "|".join(flag for flag in FAULT_FLAGS if flag not in FLAGS)
_FAULTY: Final = f'flag!~"{_COUNTED}", {REQUESTS}'
_HIGH: Final = f'risk_level="high", {REQUESTS}'
SERVER_FAULTY: Final = of_requests(rate("corevital_requests_faulty_total", _FAULTY, SERVER), by=SERVER)
SERVER_HIGH_RISK: Final = of_requests(rate("corevital_requests_total", _HIGH, SERVER), by=SERVER)
_HTTP: Final = f'handler!~"/(metrics|health|ping|version|load)", {INSTANCE}'
_HTTP_FAILED: Final = f'status=~"5..", {_HTTP}'
SERVER_FAILED: Final = (
    f"{rate('http_requests_total', _HTTP_FAILED, SERVER)} / ({rate('http_requests_total', _HTTP, SERVER)} > 0) "
    f"or 0 * ({rate('http_requests_total', _HTTP, SERVER)} > 0)"
)
SERVER_FIRST_TOKEN: Final = quantile(0.95, "gen_ai_server_time_to_first_token_seconds", by=SERVER)
SERVER_WAITING: Final = f"sum by ({SERVER}) (vllm:num_requests_waiting{{{_ENGINE}}})"
SERVER_KV_CACHE: Final = f"max by ({SERVER}) (vllm:kv_cache_usage_perc{{{_ENGINE}}})"
SERVER_TOKENS: Final = rate("corevital_tokens_total", by=SERVER)
SERVER_RESTARTS: Final = f"max by ({SERVER}) (instance:corevital_server:resets6h{{{INSTANCE}}})"
SERVER_VERSIONS: Final = (
    f"topk by ({SERVER}) (1, max by ({SERVER}, version, engine_version) (corevital_build_info{{{INSTANCE}}}))"
)

# Models

MODEL_STATES: Final = (
    f"max by (gen_ai_request_model) ({MODEL_STATE}) and on (gen_ai_request_model) "
    f"topk(6, max by (gen_ai_request_model) (sum_over_time({MODEL_STATE}[$__range] @ end())))"
)
FAULTS_OF_BUDGET: Final = f"model:corevital_faults:ratio_increase1h{{{_OF_MODEL}}} / {_OBJECTIVES.fault_budget:g}"
WORST_OF_BUDGET: Final = f"max({FAULTS_OF_BUDGET})"
LATE_OF_BUDGET: Final = (
    f"max(model:corevital_slow_first_tokens:ratio_increase1h{{{_OF_MODEL}}}) / {_OBJECTIVES.first_token_budget:g}"
)
MODEL_ENDED: Final = rate("corevital_requests_total", by=MODEL)
MODEL_HIGH_RISK: Final = of_requests(rate("corevital_requests_total", _HIGH, MODEL), by=MODEL)
MODEL_FIRST_TOKEN: Final = quantile(0.95, "gen_ai_server_time_to_first_token_seconds", by=MODEL)
MODEL_ENTROPY: Final = (
    f"{rate('corevital_entropy_bits_sum', by=MODEL)} / ({rate('corevital_entropy_bits_count', by=MODEL)} > 0)"
)
MODEL_TOKENS: Final = rate("corevital_tokens_total", by=MODEL)

# The engine beside corevital

ENGINE_WAITING: Final = f"sum(vllm:num_requests_waiting{{{_ENGINE}}})"
ENGINE_RUNNING: Final = f"sum(vllm:num_requests_running{{{_ENGINE}}})"
KV_CACHE: Final = gauge_by_server("vllm:kv_cache_usage_perc", _ENGINE)
ENGINE_PREEMPTIONS: Final = rate("vllm:num_preemptions_total", _ENGINE)
OUR_PREEMPTIONS: Final = rate("corevital_preemptions_total")
TOKENS_IN: Final = rate("vllm:prompt_tokens_total", _ENGINE)
TOKENS_OUT: Final = rate("vllm:generation_tokens_total", _ENGINE)
HTTP_FAILED: Final = (
    f"({rate('http_requests_total', _HTTP_FAILED)} or vector(0)) / ({rate('http_requests_total', _HTTP)} > 0)"
)
ERRORS: Final = of_requests(rate("corevital_requests_total", f'finish_reason="error", {REQUESTS}'))
ENDED_BY_SERVER: Final = rate_by_server("corevital_requests_total")
VERSIONS: Final = f"count by (version, engine, engine_version) (corevital_build_info{{{INSTANCE}}})"
_BUILD: Final = f"corevital_build_info{{{INSTANCE}}}"
_BEFORE: Final = f"max_over_time({_BUILD}[1h] offset 5m)"
# Not the first one of all, and not one that was away for a scrape.
VERSION_MARKS: Final = (
    f"max by (version, engine_version) ({_BUILD}) unless max by (version, engine_version) ({_BEFORE}) "
    f"and on () count({_BEFORE}) > 0"
)
_RESETS: Final = f"resets(corevital_telemetry_cpu_time_seconds_total{{{INSTANCE}}}[30m])"
# A server may be away for minutes: a reset counts when it comes into the window.
RESTART_MARKS: Final = f"topk({LINES}, {_RESETS} - {_RESETS.replace('[30m]', '[30m] offset 2m')} > 0)"

# corevital itself, by server

OUR_CPU: Final = rate_by_server("corevital_telemetry_cpu_time_seconds_total", INSTANCE)
SCRAPE_SECONDS: Final = gauge_by_server("scrape_duration_seconds", f"{CONFIG.targets.selector}, {INSTANCE}")
_LOST: Final = "instance:corevital_telemetry_lost:ratio_increase15m"
LOST_SHARE: Final = top(
    f"{_LOST}{{{INSTANCE}}}", f"max by ({SERVER}) (max_over_time({_LOST}{{{INSTANCE}}}[$__range] @ end()))"
)

MAY_BE_EMPTY: Final = frozenset(
    {
        ALERT_RANK, ALERT_SINCE,  # nothing fires
        of_server(SERVER_SINCE),
        HTTP_FAILED, of_server(SERVER_FAILED),  # the hub's page has no HTTP metrics
    }
)  # fmt: skip
"""Queries that may be empty on a server under traffic."""
