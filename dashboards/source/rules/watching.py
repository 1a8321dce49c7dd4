"""Alerts about the servers themselves, and about corevital on them."""

from typing import Final

from dashboards.source import pages
from dashboards.source.config import Config
from dashboards.source.rules.rule import Alert, Group, Scope, increase, lines, of

_I: Final = "{{ $labels.instance }}"
_COUNT: Final = '{{ $value | printf "%.0f" }}'
_UP: Final = "instance:corevital_server:up"
_FRONTEND: Final = "instance:corevital_frontend:up"
_RUNNING: Final = "instance:corevital_sequences_running:sum"


def groups(config: Config) -> list[Group]:
    """The alerts of servers."""
    scope = Scope(config)
    return [Group("corevital-watching", [*_servers(scope, config), *_seen(scope, config), *_telemetry(scope, config)])]


def _servers(scope: Scope, config: Config) -> list[Alert]:
    by, cluster, limits = scope.server, scope.cluster, config.thresholds
    fleet = f"by ({scope.job})"
    seen = f"last_over_time({_UP}[1d])"
    known = _known(_UP)
    return [
        Alert(
            name="CorevitalTargetDown",
            expr=lines(f"{known} == 0", f"or {_known(_FRONTEND)} == 0"),
            waits=config.times.deploy,
            severity="critical",
            summary=f"vLLM on {_I} does not answer",
            description=f"/metrics could not be read for {config.times.deploy}, longer than a deploy takes. The "
            f"server is "
            "down, hangs, or cannot be reached.",
            dashboard=pages.FLEET,
            shows=("instance",),
        ),
        # New pods of a rolling restart load their weights for longer than a server may be away.
        Alert(
            name="CorevitalTargetNeverUp",
            expr=lines(
                f"({_UP} == 0 unless max_over_time({_UP}[1d]) > 0)",
                f"or ({_FRONTEND} == 0 unless max_over_time({_FRONTEND}[1d]) > 0)",
            ),
            waits=config.times.start,
            severity="warning",
            summary=f"vLLM on {_I} has not answered yet",
            description=f"It has been a target for {config.times.start}, and /metrics could not be read once within a "
            "day. The server does not finish its start, or cannot be reached.",
            dashboard=pages.FLEET,
            shows=("instance",),
        ),
        Alert(
            name="CorevitalMostServersDown",
            expr=lines(
                f"count {fleet} ({known} == 0) / count {fleet} {known} > 0.5",
                f"and count {fleet} {known} >= 3",
            ),
            waits="3m",
            severity="critical",
            summary="Most servers of {{ $labels.job }} do not answer",
            description="{{ $value | humanizePercentage }} of the servers cannot be read for three minutes. A "
            "rolling deploy "
            "never takes so many away.",
            dashboard=pages.FLEET,
            shows=(),
        ),
        # Gone since a day at most; a Prometheus that never had one keeps it firing.
        Alert(
            name="CorevitalTargetsAbsent",
            expr=lines(
                f"group by ({cluster}) ({seen}) unless group by ({cluster}) ({_UP})",
                f"or (absent(up{{{config.targets.selector}}}) unless on () (group({seen}) or group({_UP})))",
            ),
            waits="5m",
            severity="critical",
            summary="Prometheus has no vLLM server as a target",
            description=f"There is no target of a job like `{config.targets.server}`, and none with corevital's "
            f"metrics. The "
            "other alerts cannot fire.",
            dashboard=pages.FLEET,
            shows=(),
        ),
        Alert(
            name="CorevitalEngineStalled",
            expr=_stalled(by),
            waits="3m",
            severity="critical",
            summary=f"The engine on {_I} does not move",
            description=f"In five minutes no sequence was answered and no token came, with {_COUNT} or more in "
            f"flight. /metrics "
            "still answers.",
            dashboard=pages.FLEET,
            shows=("instance",),
        ),
        Alert(
            name="CorevitalCrashLoop",
            expr=f"instance:corevital_server:resets1h >= {limits.crashes_1h}",
            severity="critical",
            summary=f"vLLM on {_I} restarts again and again",
            description=f"Restarts in an hour: {_COUNT}. The requests in flight are lost each time.",
            dashboard=pages.FLEET,
            shows=("instance",),
        ),
        Alert(
            name="CorevitalRestarting",
            expr=lines(
                f"instance:corevital_server:resets6h >= {limits.restarts_6h}",
                f"unless instance:corevital_server:resets1h >= {limits.crashes_1h}",
            ),
            severity="warning",
            summary=f"vLLM on {_I} restarts often",
            description=f"Restarts in six hours: {_COUNT}; a deploy and its rollback are two.",
            dashboard=pages.FLEET,
            shows=("instance",),
        ),
        # In two windows: the requests that a restart ends are one burst.
        Alert(
            name="CorevitalRequestsFailing",
            expr=_failing(scope, config),
            waits="6m",
            severity="critical",
            summary=f"Requests on {_I} fail",
            description="{{ $value | humanizePercentage }} of the requests in five minutes ended in an error of "
            "the engine or "
            "in HTTP 5xx.",
            dashboard=pages.FLEET,
            shows=("instance",),
        ),
    ]


def _known(up: str) -> str:
    """Servers that have answered within a day: not those that load their first weights."""
    return f"({up} and max_over_time({up}[1d]) > 0)"


def _stalled(by: str) -> str:
    """Sequences are in flight all the time, and neither an answer nor a token comes.

    Clients that give up end sequences too: only answers count, by their first token, or where an engine does not
    measure that, by their finish reason. An engine without vLLM's counters of tokens may be generating long answers:
    there, sequences must pile up besides.
    """
    first_token = "gen_ai_server_time_to_first_token_seconds_count"  # noqa: S105 - a name, not a secret
    answered = increase("corevital_requests_total", "5m", by, 'finish_reason!~"abort|error"')
    return lines(
        f"(min_over_time({_RUNNING}[5m]) > 0",
        f"unless on ({by}) {increase(first_token, '5m', by)} > 0",
        f"unless on ({by}) ({answered} > 0 unless on ({by}) {first_token})",
        f"unless on ({by}) {increase('vllm:generation_tokens_total', '5m', by)} > 0",
        f"unless on ({by}) {increase('vllm:iteration_tokens_total_count', '5m', by)} > 0)",
        f"and on ({by}) (group by ({by}) (vllm:generation_tokens_total) or delta({_RUNNING}[5m]) >= 4)",
    )


def _failing(scope: Scope, config: Config) -> str:
    requests, http = "corevital_requests_total", "http_requests_total"
    served = 'handler!~"/(metrics|health|ping|version|load)"'
    pairs = (
        (increase(requests, "5m", scope.server, 'finish_reason="error"'), increase(requests, "5m", scope.server)),
        (increase(http, "5m", scope.server, f'status=~"5..", {served}'), increase(http, "5m", scope.server, served)),
    )
    first, second = (
        f"({of(bad, all_)} > {config.thresholds.failed_share:g} and {bad} >= 5 and on ({scope.server}) {_UP})"
        for bad, all_ in pairs
    )
    return lines(first, f"or {second}")


def _seen(scope: Scope, config: Config) -> list[Alert]:
    by = scope.server
    requests = increase("corevital_requests_total", "10m", by)
    had = f"present_over_time(corevital_telemetry_faults_total[{config.times.rollback}])"
    return [
        # A rollback with COREVITAL_ENABLED=0 is deliberate.
        Alert(
            name="CorevitalPluginAbsent",
            expr=lines(
                f"{_UP} == 1",
                f"unless on ({by}) {had}",
                # a rollback may give each server a new name
                f"unless on ({scope.job}) (group by ({scope.job}) ({had})",
                f"  unless on ({scope.job}) group by ({scope.job}) (corevital_telemetry_faults_total))",
            ),
            waits="5m",
            severity="warning",
            summary=f"vLLM on {_I} runs without corevital",
            description="It answers without corevital metrics. It was started without --logits-processor "
            "corevital, or with "
            "COREVITAL_ENABLED=0.",
            dashboard=pages.ITSELF,
            shows=("instance",),
        ),
        # Zero only: requests may opt out.
        Alert(
            name="CorevitalRequestsUnseen",
            expr=lines(
                f"{increase('vllm:request_success_total', '10m', by)} >= 20",
                f"and on ({by}) group by ({by}) (corevital_requests_total)",
                f"unless on ({by}) {requests} > 0",
            ),
            waits="5m",
            severity="warning",
            summary=f"corevital sees none of the requests on {_I}",
            description=f"vLLM ended about {_COUNT} requests in ten minutes, and corevital reported none.",
            dashboard=pages.ITSELF,
            shows=("instance",),
        ),
        # Zero from the start: any increase is a fault of the deployment, or a request that no core can follow.
        Alert(
            name="CorevitalUnobservedSequences",
            expr=f"{increase('corevital_sequences_unobserved_total', '10m', by)} > 0",
            severity="warning",
            summary=f"Nobody measures requests of the engine on {_I}",
            description=f"Sequences in ten minutes that the engine ran and nobody measured: about {_COUNT}. The "
            f"engine's log "
            "names the cause and the fix.",
            dashboard=pages.ITSELF,
            shows=("instance",),
        ),
    ]


def _telemetry(scope: Scope, config: Config) -> list[Alert]:
    limits = config.thresholds
    lost = "instance:corevital_telemetry_lost"
    return [
        Alert(
            name="CorevitalTelemetryLost",
            expr=lines(
                f"{lost}:ratio_increase15m > {limits.lost_share:g}",
                f"and {lost}:increase15m >= {limits.lost_least}",
            ),
            waits="5m",
            severity="warning",
            summary=f"corevital on {_I} loses telemetry ({{{{ $labels.what }}}})",
            description="Lost in 15 minutes: {{ $value | humanizePercentage }}. Requests are unaffected; traces "
            "or rows of some "
            "are missing.",
            dashboard=pages.ITSELF,
            shows=("instance",),
        ),
        Alert(
            name="CorevitalTelemetryLagging",
            expr=f"instance:corevital_telemetry_lag_seconds:p95_rate5m > {limits.lag_s:g}",
            waits="10m",
            severity="warning",
            summary=f"corevital on {_I} reports late",
            description="One report in twenty is made more than {{ $value | humanizeDuration }} after its "
            "sequence ended. "
            "Requests do not wait for it.",
            dashboard=pages.ITSELF,
            shows=("instance",),
        ),
        Alert(
            name="CorevitalInternalFaults",
            expr=f"{increase('corevital_telemetry_faults_total', '1h', scope.server)} > 0",
            severity="warning",
            summary=f"corevital on {_I} has internal errors",
            description=f"Exceptions inside corevital in an hour: about {_COUNT}. No request failed because of "
            f"them; some may "
            "have no report.",
            dashboard=pages.ITSELF,
            shows=("instance",),
        ),
        Alert(
            name="CorevitalCostHigh",
            expr=f"instance:corevital_telemetry_cpu_time_seconds:rate15m > {limits.cores:g}",
            waits="15m",
            severity="info",
            summary=f"corevital on {_I} uses most of a core",
            description='Its telemetry threads take {{ $value | printf "%.2f" }} cores. They share the API '
            "server's Python "
            "with the requests.",
            dashboard=pages.ITSELF,
            shows=("instance",),
        ),
    ]
