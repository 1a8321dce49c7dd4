"""Recordings of a server: whether it is there, what it lost, and how it compares with its peers.

Its peers are the other servers of its model in its cluster. A server without peers under traffic has no comparison; the
alerts of the model apply to it.
"""

from typing import Final

from dashboards.source.config import Config
from dashboards.source.rules.rule import MODEL, Group, Record, Scope, increase, lines, of

WINDOW: Final = "15m"
_UP: Final = "instance:corevital_server:up"
COMPARED: Final = {
    "corevital_loop_requests": ("corevital_health_flags_total", 'flag="repetition_loop_detected"'),
    "corevital_high_risk_requests": ("corevital_requests_total", 'risk_level="high"'),
    "corevital_aborted_requests": ("corevital_requests_total", 'finish_reason="abort"'),
}
"""Counter and matchers of each kind of sequence whose share is compared."""


def groups(config: Config) -> list[Group]:
    """Recordings of servers."""
    scope = Scope(config)
    both, server = scope.both, scope.server
    ended = f"instance:corevital_requests:increase{WINDOW}"
    present: list[Record] = [
        # A server of ours, by its job or because it has had our metrics: 1 if Prometheus can read it.
        Record(
            "instance:corevital_server:up",
            lines(
                f"max by ({server}) (",
                f"up{{{config.targets.selector}}}",
                f"or up and on ({server}) "
                f"present_over_time(corevital_telemetry_faults_total[{config.times.rollback}]))",
            ),
        ),
        # Behind the Rust frontend the hub above answers even where vLLM is dead.
        Record("instance:corevital_frontend:up", f'max by ({server}) (up{{job=~"{config.targets.frontend}"}})'),
        *(
            Record(
                f"instance:corevital_server:resets{window}",
                lines(
                    f"max by ({server}) (",
                    f"resets(corevital_telemetry_cpu_time_seconds_total[{window}])",
                    f"or resets(corevital_requests_total[{window}]))",
                ),
            )
            for window in ("1h", "6h")
        ),
        Record("instance:corevital_sequences_running:sum", f"sum by ({server}) (corevital_sequences_running)"),
        Record(
            "instance:corevital_sequences_looping:ratio",
            lines(
                f"sum by ({both}) (corevital_sequences_looping)",
                f"/ (sum by ({both}) (corevital_sequences_running) > 0)",
            ),
        ),
    ]
    compared: list[Record] = [Record(ended, increase("corevital_requests_total", WINDOW, both))]
    for name, (metric, matchers) in COMPARED.items():
        bad = f"instance:{name}:increase{WINDOW}"
        compared += (
            Record(bad, increase(metric, WINDOW, both, matchers)),
            Record(f"instance:{name}:ratio_increase{WINDOW}", of(bad, ended)),
            Record(f"instance:{name}:peers_ratio_increase{WINDOW}", _of_peers(bad, ended, scope)),
        )
    present += [
        Record("instance:corevital_server:state", _state(server, "instance", f"1 - {_UP}", f"and on ({server}) {_UP}")),
        Record("model:corevital_model:state", _state(scope.model, MODEL, "0 * model:corevital_requests:increase5m")),
    ]
    total, count = (f"instance:corevital_entropy_bits_{part}:increase30m" for part in ("sum", "count"))
    compared += (
        Record(total, increase("corevital_entropy_bits_sum", "30m", both)),
        Record(count, increase("corevital_entropy_bits_count", "30m", both)),
        Record("instance:corevital_entropy_bits:mean30m", f"{total} / ({count} >= 50)"),
        # Not the mean of the others: one server that is far off would move it for all of them.
        Record(
            "model:corevital_entropy_bits:median30m",
            lines(
                f"quantile by ({scope.model}) (0.5, instance:corevital_entropy_bits:mean30m)",
                f"and count by ({scope.model}) (instance:corevital_entropy_bits:mean30m) >= 3",
            ),
        ),
    )
    return [
        Group("corevital-servers", present),
        Group("corevital-peers", compared, interval="1m"),
        Group("corevital-telemetry", _telemetry(config, server)),
    ]


def _state(by: str, label: str, otherwise: str, condition: str = "") -> str:
    """How it is now: 3 with a critical alert, 2 with a warning, else 1 for a server that does not answer, or 0.

    Args:
        by: labels to aggregate by.
        label: the one that an alert about it has.
    """
    firing = f'ALERTS{{alertname=~"Corevital.*", alertstate="firing", {label}!=""'
    return lines(
        f"max by ({by}) (",
        f'3 * {firing}, severity="critical"}}',
        f'or 2 * {firing}, severity="warning"}}',
        f"or {otherwise})",
        *([condition] if condition else []),
    )


def _of_peers(part: str, whole: str, scope: Scope) -> str:
    def others(recorded: str) -> str:
        return f"(sum by ({scope.model}) ({recorded}) - on ({scope.model}) group_right () {recorded})"

    return lines(others(part), f"/ ({others(whole)} > 0)")


def _telemetry(config: Config, server: str) -> list[Record]:
    # What was lost, as a share of what there was: spans, reports and the like of requests, records of tokens. Records
    # that come late and series cut by design are not losses; data points that OTLP refused are on /metrics.
    lost = "instance:corevital_telemetry_lost:increase15m"
    of_requests = f'{lost}{{what!="record"}}'
    dropped, by_what = "corevital_telemetry_dropped_total", f"{server}, what"
    return [
        Record(
            lost,
            lines(
                increase(dropped, "15m", by_what, 'what=~"span|report|sequence|risk"'),
                "or " + increase(dropped, "15m", by_what, 'what="record", why=~"queue_full|missing"'),
            ),
        ),
        Record(
            "instance:corevital_telemetry_lost:ratio_increase15m",
            lines(
                f"clamp_max({of_requests} / on ({server}) group_left ()",
                f"clamp_min({increase('corevital_requests_total', '15m', server)}, 1), 1)",
                f'or clamp_max({lost}{{what="record"}} / on ({server}) group_left ()',
                f"clamp_min({increase('corevital_tokens_total', '15m', server)}, 1), 1)",
            ),
        ),
        Record(
            "instance:corevital_telemetry_lag_seconds:p95_rate5m",
            f"histogram_quantile(0.95, sum by ({server}, le) (rate(corevital_telemetry_lag_seconds_bucket[5m]))) > 0",
        ),
        Record(
            "instance:corevital_telemetry_cpu_time_seconds:rate15m",
            f"sum by ({server}) (rate(corevital_telemetry_cpu_time_seconds_total[15m]))",
        ),
    ]
