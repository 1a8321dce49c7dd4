"""Alerts about what watches: Collector, Tempo, Prometheus, Alertmanager, Grafana, and the way from one to the next."""

from typing import Final

from dashboards.source import pages
from dashboards.source.config import Config
from dashboards.source.rules.rule import Alert, Group, Scope, lines

_TOO_EARLY: Final = "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early"
_OUR_RULES: Final = 'rule_group=~".*corevital.*"'  # FILE;GROUP: not the rules of others in a shared Prometheus
_PROBLEM: Final = "{{ $labels.problem }}"


def groups(config: Config) -> list[Group]:
    """The alerts of the stack."""
    scope, parts = Scope(config), f'up{{job=~"{config.targets.stack}"}}'
    job = scope.job
    tempo, grafana = f'job=~"{config.targets.tempo}"', f'job=~"{config.targets.grafana}"'
    answered = "grafana_http_request_duration_seconds_count"

    def more(metric: str, matchers: str = "", least: int = 0, by: str = job) -> str:
        return f"sum by ({by}) (increase({metric}{{{matchers}}}[10m])) > {least}"

    return [
        Group(
            "corevital-stack",
            [
                # Always fires where Prometheus reads anything. A receiver outside notices when it stops.
                Alert(
                    name="CorevitalWatchdog",
                    expr="group(up)",
                    severity="none",
                    summary="Alerts reach their receivers",
                    description="This alert always fires. Where it stops, Prometheus, Alertmanager or the way "
                    "between them is "
                    "broken.",
                    dashboard=pages.ITSELF,
                    shows=(),
                ),
                Alert(
                    name="CorevitalStackPartDown",
                    expr=f"max by ({job}) ({parts}) == 0",
                    waits="5m",
                    severity="warning",
                    summary="{{ $labels.job }} does not answer",
                    description="Prometheus could not read its metrics for five minutes. vLLM answers requests "
                    "as before.",
                    dashboard=pages.ITSELF,
                    shows=(),
                ),
                Alert(
                    name="CorevitalStackPartAbsent",
                    expr=f"group by ({job}) (last_over_time({parts}[1d])) unless group by ({job}) ({parts})",
                    waits="10m",
                    severity="warning",
                    summary="{{ $labels.job }} is not a target any more",
                    description="Prometheus read its metrics within the last day and has no such target now.",
                    dashboard=pages.ITSELF,
                    shows=(),
                ),
                Alert(
                    name="CorevitalCollectorLosing",
                    expr=_either(
                        ("spans are refused", more("otelcol_receiver_refused_spans_total")),
                        ("spans are refused", more("otelcol_receiver_refused_spans")),
                        ("spans are refused", more("otelcol_receiver_failed_spans_total")),
                        ("spans do not fit into the queue", more("otelcol_exporter_enqueue_failed_spans_total")),
                        ("spans do not fit into the queue", more("otelcol_exporter_enqueue_failed_spans")),
                        ("traces are dropped before a decision", more(f"{_TOO_EARLY}_total")),
                        ("traces are dropped before a decision", more(_TOO_EARLY)),
                        ("spans cannot be sent", more("otelcol_exporter_send_failed_spans_total")),
                        ("spans cannot be sent", more("otelcol_exporter_send_failed_spans")),
                        (
                            "the queue is nearly full",
                            f"max by ({job}) (otelcol_exporter_queue_size / otelcol_exporter_queue_capacity) > 0.8",
                        ),
                    ),
                    waits="5m",
                    severity="warning",
                    summary=f"The Collector has a problem: {_PROBLEM}",
                    description=f"For five minutes: {_PROBLEM}. It retries, and corevital keeps refused spans "
                    f"for five minutes; "
                    "after that traces are lost. Requests are unaffected.",
                    dashboard=pages.ITSELF,
                    shows=(),
                ),
                Alert(
                    name="CorevitalTempoLosing",
                    expr=_either(
                        ("spans are discarded", more("tempo_discarded_spans_total", tempo)),
                        ("blocks cannot be written", more("tempo_ingester_failed_flushes_total", tempo)),
                    ),
                    waits="5m",
                    severity="warning",
                    summary=f"Tempo has a problem: {_PROBLEM}",
                    description=f"For five minutes: {_PROBLEM}. Its log names the reason. The store has every request.",
                    dashboard=pages.ITSELF,
                    shows=(),
                ),
                Alert(
                    name="CorevitalPrometheusFailing",
                    expr=_either(
                        (
                            "its configuration is not loaded",
                            f"min by ({job}) (prometheus_config_last_reload_successful) == 0",
                        ),
                        ("rules fail", more("prometheus_rule_evaluation_failures_total", _OUR_RULES)),
                        ("rules are skipped", more("prometheus_rule_group_iterations_missed_total", _OUR_RULES)),
                        ("samples cannot be written", more("prometheus_tsdb_wal_writes_failed_total")),
                    ),
                    waits="5m",
                    severity="critical",
                    summary=f"Prometheus has a problem: {_PROBLEM}",
                    description=f"For five minutes: {_PROBLEM}. Alerts may be missing.",
                    dashboard=pages.ITSELF,
                    shows=(),
                ),
                Alert(
                    name="CorevitalAlertsUndelivered",
                    expr=_either(
                        (
                            "its configuration is not loaded",
                            f"min by ({job}) (alertmanager_config_last_reload_successful) == 0",
                        ),
                        (
                            "notifications fail",
                            more("alertmanager_notifications_failed_total", by=f"{job}, integration"),
                        ),
                        ("Prometheus cannot send alerts", more("prometheus_notifications_dropped_total")),
                        (
                            "Prometheus knows no Alertmanager",
                            f"min by ({job}) (prometheus_notifications_alertmanagers_discovered) < 1",
                        ),
                    ),
                    waits="5m",
                    severity="critical",
                    summary=f"Alerts do not arrive: {_PROBLEM}",
                    description=f"For five minutes: {_PROBLEM}. Look at the alerts in Prometheus until this is fixed.",
                    dashboard=pages.ITSELF,
                    shows=(),
                ),
                Alert(
                    name="CorevitalGrafanaFailing",
                    expr=lines(
                        f'sum by ({job}) (increase({answered}{{{grafana}, status_code=~"5.."}}[10m]))',
                        f"/ (sum by ({job}) (increase({answered}{{{grafana}}}[10m])) > 20) > 0.1",
                    ),
                    waits="10m",
                    severity="info",
                    summary="Grafana answers with errors",
                    description="{{ $value | humanizePercentage }} of its answers in ten minutes were HTTP 5xx. "
                    "Alerts do not "
                    "depend on Grafana; its dashboards and runbooks do.",
                    dashboard=pages.ITSELF,
                    shows=(),
                ),
            ],
        )
    ]


def _either(*problems: tuple[str, str]) -> str:
    """Conditions of one alert, each with its text as the label ``problem``."""
    first, *further = (f'label_replace({expr}, "problem", "{text}", "", "")' for text, expr in problems)
    return lines(first, *(f"or {expr}" for expr in further))
