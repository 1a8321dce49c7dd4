"""Alerts about what a model, or one server of it, answers."""

from typing import Final

from dashboards.source.config import Config, percent
from dashboards.source.rules.rule import Alert, Group, Scope, increase, lines
from dashboards.source.rules.servers import WINDOW

_EACH_TOKEN: Final = "gen_ai_server_time_per_output_token_seconds"  # noqa: S105 - a name, not a secret
_LOOPING: Final = "corevital_sequences_looping:ratio"
_M: Final = "{{ $labels.gen_ai_request_model }}"
_I: Final = "{{ $labels.instance }}"
_SHARE: Final = "{{ $value | humanizePercentage }}"
_COUNT: Final = '{{ $value | printf "%.0f" }}'


def groups(config: Config) -> list[Group]:
    """The alerts of models, and those of servers among their peers."""
    scope = Scope(config)
    return [
        Group(
            "corevital-model", [*_at_once(scope, config), *_shares(scope, config), *_own_week(config), _traffic(scope)]
        ),
        Group("corevital-outliers", _outliers(scope, config)),
    ]


def _at_once(scope: Scope, config: Config) -> list[Alert]:
    def flagged(flag: str) -> str:
        return increase("corevital_health_flags_total", "10m", scope.both, f'flag="{flag}"') + " > 0"

    return [
        Alert(
            name="CorevitalNaNLogits",
            expr=flagged("nan_detected"),
            severity="critical",
            summary=f"{_M} computes NaN on {_I}",
            description=f"Sequences with NaN among their logits in ten minutes: about {_COUNT}. They were "
            f"answered with HTTP "
            "200, and their text is arbitrary.",
            shows=("model", "instance"),
        ),
        Alert(
            name="CorevitalInfLogits",
            expr=flagged("inf_detected"),
            severity="warning",
            summary=f"{_M} overflows on {_I}",
            description=f"Sequences with +Inf among their logits in ten minutes: about {_COUNT}. A number grew "
            f"too large for "
            "its type, and NaN often comes next.",
            shows=("model", "instance"),
        ),
        Alert(
            name="CorevitalStuckInLoops",
            expr=lines(
                f"model:{_LOOPING} > {config.thresholds.looping_now:g}",
                f"and on ({scope.model}) sum by ({scope.model}) (corevital_sequences_running) >= 4",
            ),
            waits="2m",
            severity="critical",
            summary=f"{_M} repeats itself in most answers",
            description=f"{_SHARE} of the running sequences are in a repetition loop.",
        ),
    ]


def _shares(scope: Scope, config: Config) -> list[Alert]:
    return [
        Alert(
            name="CorevitalLoopShareHigh",
            expr=lines(
                f"model:corevital_loop_requests:ratio_increase30m > {config.thresholds.loop_share:g}",
                "and model:corevital_requests:increase30m >= 50",
            ),
            waits="5m",
            severity="warning",
            summary=f"{_M} loops more often than it should",
            description=f"{_SHARE} of its sequences in 30 minutes fell into a repetition loop.",
        ),
        Alert(
            name="CorevitalStopsOften",
            expr=lines(
                increase("corevital_requests_stopped_total", "30m", scope.model)
                + f" / model:corevital_requests:increase30m > {config.thresholds.stopped_share:g}",
                "and model:corevital_requests:increase30m >= 50",
            ),
            waits="5m",
            severity="warning",
            summary=f"Many answers of {_M} are ended early",
            description=f"{_SHARE} of its sequences in 30 minutes were ended by `corevital_stop_on`. "
            "Their callers got a part of an answer.",
        ),
    ]


def _own_week(config: Config) -> list[Alert]:
    """Compared with the model's last week; without one the share alone decides, and its first hours become that."""
    limits = config.thresholds
    times = "twice" if limits.times_own_week == 2 else f"{limits.times_own_week:g} times"
    than_week = f"more than {times} the share of the last week, if there is one"

    def risen(name: str, window: str, above: float, least: str) -> str:
        ratio = f"model:{name}:ratio_increase{window}"
        return lines(
            f"({ratio} > {above:g} and {least})",
            f"unless {ratio} <= {limits.times_own_week:g} * model:{name}:ratio_1w",
        )

    def requests(least: int) -> str:
        return f"model:corevital_requests:increase1h >= {least}"

    mean, week = "model:corevital_entropy_bits:mean1h", "model:corevital_entropy_bits:mean_1w"
    token = f"model:{_EACH_TOKEN}"
    return [
        Alert(
            name="CorevitalHighRiskShareRising",
            expr=risen("corevital_high_risk_requests", "1h", limits.high_risk_share, requests(100)),
            waits="15m",
            severity="warning",
            summary=f"More of the answers of {_M} are at high risk",
            description=f"{_SHARE} of its sequences in an hour were at high risk: {than_week}.",
        ),
        # Far from this model's hours and by a fifth of the mean: after a very even week, noise alone must not fire.
        Alert(
            name="CorevitalEntropyShift",
            expr=lines(
                f"(abs({mean} - {week}) > 4 * model:corevital_entropy_bits:stddev_1w",
                f"and abs({mean} - {week}) > 0.2 * {week}",
                f"and {requests(100)})",
                f"and present_over_time({mean}[6d] offset 1d)",
            ),
            waits="30m",
            severity="warning",
            summary=f"The entropy of {_M} has left the range of the last week",
            description='The mean entropy of an hour is {{ $value | printf "%.2f" }} bits away from the mean of '
            "the last "
            "week: other prompts, other sampling, or another model.",
        ),
        Alert(
            name="CorevitalTruncationRising",
            expr=risen("corevital_truncated_requests", "1h", limits.truncated_share, requests(50)),
            waits="15m",
            severity="warning",
            summary=f"More of the answers of {_M} are cut off",
            description=f"{_SHARE} of its sequences in an hour ended at their length limit: {than_week}.",
        ),
        Alert(
            name="CorevitalWarningShareRising",
            expr=risen(
                "corevital_health_warnings",
                "1h",
                limits.warning_share,
                "model:corevital_health_warnings:increase1h >= 10",
            ),
            waits="15m",
            severity="warning",
            summary=f"More of the answers of {_M} have the warning {{{{ $labels.warning }}}}",
            description=f"{_SHARE} of its sequences in an hour had it: {than_week}.",
        ),
        Alert(
            name="CorevitalAbortShareHigh",
            expr=risen(
                "corevital_aborted_requests",
                "10m",
                limits.abort_share,
                "model:corevital_aborted_requests:increase10m >= 20",
            ),
            waits="3m",
            severity="critical",
            summary=f"Most clients of {_M} give up",
            description=f"{_SHARE} of its sequences in ten minutes were aborted before their end: {than_week}. "
            f"Their clients "
            "closed the connection, often because the first token did not come.",
        ),
        Alert(
            name="CorevitalTokenLatencyRising",
            expr=lines(
                f"{token}:mean1h > 2 * {token}:mean_1w",
                f"and {requests(50)}",
                f"and present_over_time({token}:mean1h[6d] offset 1d)",
            ),
            waits="15m",
            severity="warning",
            summary=f"{_M} generates at less than half its usual speed",
            description="A token after the first takes {{ $value | humanizeDuration }} on average over an hour, "
            "more than "
            "twice the mean of the last week.",
        ),
    ]


def _traffic(scope: Scope) -> Alert:
    # Every hundred requests are compared with earlier ones: chance flags one hundred, what stays flags more.
    shifted = increase("corevital_health_warnings_total", "6h", scope.both, 'warning="traffic_shifted"')
    return Alert(
        name="CorevitalTrafficShifted",
        expr=f"{shifted} > 150",
        severity="info",
        summary=f"The requests of {_M} on {_I} have changed",
        description=f"Requests in six hours while the traffic had shifted: about {_COUNT}. New callers or "
        f"prompts, or a "
        "changed model. Risk scores of the basis `baseline` now compare with the new traffic.",
        shows=("model", "instance"),
    )


def _outliers(scope: Scope, config: Config) -> list[Alert]:
    """One server is worse than its peers. Where all are alike, the alerts of the model fire."""
    limits = config.outlier
    median = "model:corevital_entropy_bits:median30m"
    matched = f"on ({scope.model}) group_left ()"
    away = f"abs(instance:corevital_entropy_bits:mean30m - {matched} {median})"

    def outlier(name: str, above: float) -> str:
        ratio = f"instance:{name}:ratio_increase{WINDOW}"
        return lines(
            f"{ratio} > {above:g}",
            f"and instance:{name}:increase{WINDOW} >= {limits.least}",
            f"and {ratio} > {limits.times_peers:g} * instance:{name}:peers_ratio_increase{WINDOW}",
        )

    others = f"more than {limits.times_peers:g} times the share of its peers"
    return [
        Alert(
            name="CorevitalInstanceStuckInLoops",
            expr=lines(
                f"instance:{_LOOPING} > {config.thresholds.looping_now:g}",
                f"and on ({scope.both}) sum by ({scope.both}) (corevital_sequences_running) >= 4",
                f"unless on ({scope.model}) model:{_LOOPING} > {config.thresholds.looping_now:g}",
            ),
            waits="2m",
            severity="critical",
            summary=f"{_I} repeats itself in most answers of {_M}",
            description=f"{_SHARE} of the sequences that run on this server are in a repetition loop, and most "
            f"of its peers' "
            "are not.",
            shows=("model", "instance"),
        ),
        Alert(
            name="CorevitalInstanceLoops",
            expr=outlier("corevital_loop_requests", limits.loop_share),
            waits="2m",
            severity="critical",
            summary=f"{_I} loops more often than the other servers of {_M}",
            description=f"{_SHARE} of its sequences in 15 minutes fell into a repetition loop: {others}.",
            shows=("model", "instance"),
        ),
        Alert(
            name="CorevitalInstanceHighRisk",
            expr=outlier("corevital_high_risk_requests", limits.high_risk_share),
            waits="5m",
            severity="warning",
            summary=f"{_I} answers at higher risk than the other servers of {_M}",
            description=f"{_SHARE} of its sequences in 15 minutes were at high risk: {others}.",
            shows=("model", "instance"),
        ),
        Alert(
            name="CorevitalInstanceAborts",
            expr=outlier("corevital_aborted_requests", limits.abort_share),
            waits="3m",
            severity="critical",
            summary=f"Most clients of {_M} on {_I} give up",
            description=f"{_SHARE} of its sequences in 15 minutes were aborted before their end: {others}.",
            shows=("model", "instance"),
        ),
        Alert(
            name="CorevitalInstanceEntropy",
            expr=lines(
                f"{away} > {matched} ({limits.entropy_share:g} * {median})",
                f"and {away} > {limits.entropy_bits:g}",
            ),
            waits="10m",
            severity="warning",
            summary=f"The entropy of {_M} on {_I} differs from that of its peers",
            description='The mean entropy of half an hour is {{ $value | printf "%.2f" }} bits away from the median of '
            f"the servers, more than {percent(limits.entropy_share)} of it.",
            shows=("model", "instance"),
        ),
    ]
