"""PromQL of the dashboards. ``$model``, ``$instance`` and the like are variables of theirs.

A share is a sum over a sum above zero: where nothing ended there is no value, and the panel shows "no traffic".
What an alert looks at is read from the rules' recordings, so that panel and alert cannot differ.
"""

from typing import Final

from dashboards.source.config import CONFIG

_CLUSTER: Final = f'{CONFIG.labels.cluster}=~"$cluster"'
_MODEL: Final = 'gen_ai_request_model=~"$model"'
_SERVERS: Final = CONFIG.targets.selector
_SERVER: Final = f"{CONFIG.labels.cluster}, {', '.join(CONFIG.labels.server)}"
MODEL: Final = f"{_MODEL}, {_CLUSTER}"
INSTANCE: Final = f'instance=~"$instance", {_CLUSTER}'
REQUESTS: Final = f"{_MODEL}, {INSTANCE}"
"""Selector of metrics about requests; metrics about a process have no model."""


def rate(metric: str, selector: str = REQUESTS, by: str = "") -> str:
    """Rate of a counter per second, summed by the labels ``by`` or over everything."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(q: float, histogram: str, selector: str = REQUESTS, by: str = "") -> str:
    """Quantile ``q`` of a histogram's observations; no value instead of NaN without observations."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', selector, labels)}) >= 0"


def mean(histogram: str, selector: str = REQUESTS, by: str = "") -> str:
    """Mean of a histogram's observations."""
    return f"{rate(f'{histogram}_sum', selector, by)} / ({rate(f'{histogram}_count', selector, by)} > 0)"


def of_requests(numerator: str, selector: str = REQUESTS, by: str = "") -> str:
    """A rate as a share of all sequences that ended."""
    return f"{numerator} / ({rate('corevital_requests_total', selector, by)} > 0)"


def before(query: str) -> str:
    """The query, ``$compare`` ago."""
    return query.replace("[$__rate_interval]", "[$__rate_interval] offset $compare").replace(
        "[$__range]", "[$__range] offset $compare"
    )


def buckets(histogram: str) -> str:
    """Observations by bucket, for a heatmap."""
    return f"sum by (le) (increase({histogram}_bucket{{{REQUESTS}}}[$__rate_interval]))"


def mean_of_range(histogram: str) -> str:
    """Mean of a histogram's observations over the time range shown."""
    total = f"sum(increase({histogram}_sum{{{REQUESTS}}}[$__range]))"
    return f"{total} / (sum(increase({histogram}_count{{{REQUESTS}}}[$__range])) > 0)"


# Requests

SERVERS_UP: Final = f"sum(up{{{_SERVERS}, {INSTANCE}}})"
ENDED: Final = rate("corevital_requests_total")
ENDED_BY_REASON: Final = rate("corevital_requests_total", by="finish_reason")
ENDED_BY_LEVEL: Final = rate("corevital_requests_total", by="risk_level")
TOKENS: Final = rate("corevital_tokens_total")
TOKENS_BY_MODEL: Final = rate("corevital_tokens_total", by="gen_ai_request_model")
TOKENS_EACH: Final = of_requests(rate("corevital_tokens_total"))
RUNNING: Final = f"sum(corevital_sequences_running{{{REQUESTS}}})"
LOOPING: Final = f"sum(corevital_sequences_looping{{{REQUESTS}}})"
ALARMED: Final = f"sum(corevital_sequences_alarmed{{{REQUESTS}}})"

# Health and risk

_HIGH: Final = f'risk_level="high", {REQUESTS}'
HIGH_RISK_SHARE: Final = of_requests(rate("corevital_requests_total", _HIGH))
FLAG_SHARES: Final = (
    f"{rate('corevital_health_flags_total', by='flag')} / on () group_left () ({rate('corevital_requests_total')} > 0)"
)
WARNING_SHARES: Final = (
    f"{rate('corevital_health_warnings_total', by='warning')} "
    f"/ on () group_left () ({rate('corevital_requests_total')} > 0)"
)

# What the alerts use

FAULT_BURN: Final = f"model:corevital_faults:ratio_increase1h{{{MODEL}}} / {CONFIG.objectives.fault_budget:g}"
FAULT_BURN_LONG: Final = f"model:corevital_faults:ratio_increase6h{{{MODEL}}} / {CONFIG.objectives.fault_budget:g}"
LATENCY_BURN: Final = (
    f"model:corevital_slow_first_tokens:ratio_increase1h{{{MODEL}}} / {CONFIG.objectives.first_token_budget:g}"
)
LATENCY_BURN_LONG: Final = (
    f"model:corevital_slow_first_tokens:ratio_increase6h{{{MODEL}}} / {CONFIG.objectives.first_token_budget:g}"
)
ENTROPY_HOUR: Final = f"model:corevital_entropy_bits:mean1h{{{MODEL}}}"
ENTROPY_WEEK: Final = f"model:corevital_entropy_bits:mean_1w{{{MODEL}}}"
ENTROPY_WEEK_HIGH: Final = f"{ENTROPY_WEEK} + 4 * model:corevital_entropy_bits:stddev_1w{{{MODEL}}}"
ENTROPY_WEEK_LOW: Final = f"clamp_min({ENTROPY_WEEK} - 4 * model:corevital_entropy_bits:stddev_1w{{{MODEL}}}, 0)"
HIGH_RISK_HOUR: Final = f"model:corevital_high_risk_requests:ratio_increase1h{{{MODEL}}}"
HIGH_RISK_WEEK: Final = f"model:corevital_high_risk_requests:ratio_1w{{{MODEL}}}"
TRUNCATED_HOUR: Final = f"model:corevital_truncated_requests:ratio_increase1h{{{MODEL}}}"
TRUNCATED_WEEK: Final = f"model:corevital_truncated_requests:ratio_1w{{{MODEL}}}"

# corevital itself

PLUGIN_ABSENT: Final = (
    f"count(up{{{_SERVERS}, {INSTANCE}}} == 1 unless on ({_SERVER}) corevital_telemetry_faults_total) or vector(0)"
)
UNOBSERVED: Final = f"sum(increase(corevital_sequences_unobserved_total{{{INSTANCE}}}[$__range]))"
LOST: Final = f"sum by (what) (increase(corevital_telemetry_dropped_total{{{INSTANCE}}}[$__range])) > 0"
DROPPED: Final = rate("corevital_telemetry_dropped_total", INSTANCE, "what, why")
EXPORTED: Final = rate("corevital_telemetry_exported_total", INSTANCE, "signal")
VLLM_ENDED: Final = rate("vllm:request_success_total", INSTANCE)
OURS_ENDED: Final = rate("corevital_requests_total", INSTANCE)
QUEUED: Final = f"sum by (what) (corevital_telemetry_queue{{{INSTANCE}}})"
FAULTS: Final = f"sum(increase(corevital_telemetry_faults_total{{{INSTANCE}}}[$__range]))"
CPU_A_SEQUENCE: Final = of_requests(rate("corevital_telemetry_cpu_time_seconds_total", INSTANCE), INSTANCE)
SERIES: Final = f'count({{__name__=~"corevital_.*|gen_ai_server_.*", {INSTANCE}}})'
SPAN_SECONDS: Final = (
    "histogram_quantile(0.95, sum by (le, corevital_risk_level) "
    f'(rate(traces_span_metrics_duration_seconds_bucket{{{MODEL}, corevital_risk_level!=""}}[$__rate_interval]))) >= 0'
)
STACK_UP: Final = f'min by (job) (up{{job=~"{CONFIG.targets.stack}"}})'

MAY_BE_EMPTY: Final = frozenset(
    {
        LOST,  # nothing was lost
        # a week is compared without its last hour
        ENTROPY_WEEK, ENTROPY_WEEK_HIGH, ENTROPY_WEEK_LOW, HIGH_RISK_WEEK, TRUNCATED_WEEK,
        SPAN_SECONDS, STACK_UP,  # without docker-compose.otel.yml
    }
)  # fmt: skip
"""Queries that may be empty on a server under traffic, besides everything with :func:`before`."""
