"""*Fleet health*: is anything wrong, where, and since when? All models and servers at a glance."""

from dashboards.source import colours, frame, links, pages, states
from dashboards.source import queries as q
from dashboards.source.config import CONFIG, percent
from dashboards.source.panels import BITS, SHARE, graph, number, timeline
from dashboards.source.tables import Column, rows
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import StackingMode

_GOALS = CONFIG.objectives
_LIMITS = CONFIG.thresholds
_OBJECTIVE = f"The objective is {_GOALS.first_token_s:g} s for {percent(1 - _GOALS.first_token_budget)}."
_FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"  # noqa: S105 - a name, not a secret
_EACH_TOKEN = "gen_ai_server_time_per_output_token_seconds"  # noqa: S105 - a name, not a secret
_BUDGET = f"The budget is {percent(_GOALS.fault_budget)} of sequences with NaN, Inf, a loop or an error of the engine."


def dashboard() -> builders.Dashboard:
    """Build the dashboard."""
    made = frame.frame(pages.FLEET, "corevital: Fleet health", "Is anything wrong, where, and since when?")
    made = made.variables(
        [
            frame.datasource("datasource", "prometheus", "Prometheus"),
            frame.datasource("tempo", "tempo", "Tempo"),
            frame.cluster(),
            frame.model(),
            frame.instance(),
        ]
    )
    for mark in frame.marks():
        made = made.annotation(mark)
    made = frame.row(
        made,
        "Is anything wrong, where, and since when?",
        number(
            "Alerts firing",
            "Alerts of corevital. Alertmanager may have silenced some.",
            "short",
            {severity: states.firing(severity) for severity in ("critical", "warning")},
            trend=True,
        ),
        number(
            "Servers not well",
            "vLLM servers with an alert, or whose /metrics Prometheus cannot read.",
            "short",
            {"": states.SERVERS_UNWELL},
            amber_from=1,
            trend=True,
        ),
        number(
            "Fault budget used, 1 h",
            f"Of the model that uses most. {_BUDGET} Above 100 % it does not last.",
            SHARE,
            {"": states.WORST_OF_BUDGET},
            amber_from=0.5,
            red_from=1,
            decimals=0,
            trend=True,
            links=links.PANEL,
        ),
        number(
            "High risk",
            "Share of sequences whose risk score is at or above COREVITAL_RISK_THRESHOLD.",
            SHARE,
            {"": q.HIGH_RISK_SHARE},
            amber_from=_LIMITS.high_risk_share / 2,
            red_from=_LIMITS.high_risk_share,
            decimals=1,
            trend=True,
            links=links.PANEL,
        ),
        number(
            "First token, p95",
            f"One answer in twenty begins later than this. {_OBJECTIVE}",
            units.Seconds,
            {"": q.quantile(0.95, _FIRST_TOKEN)},
            amber_from=_GOALS.first_token_s / 2,
            red_from=_GOALS.first_token_s,
            trend=True,
        ),
        number(
            "Sequences a second",
            "Sequences that ended; a request with n=2 is two.",
            units.RequestsPerSecond,
            {"": q.ENDED},
            trend=True,
        ),
        timeline(
            "Since when",
            "The 6 models and the 14 servers that were worst in the time shown. Grey: no answer, as while a deploy "
            "loads weights. A click leads to requests at risk.",
            {"model {{gen_ai_request_model}}": states.MODEL_STATES, "{{instance}}": states.SERVER_STATES},
            links.PANEL,
            span=13,
            height=9,
        ),
        _alerts(),
        _servers(),
        _models(),
    )
    made = frame.row(
        made,
        "Health and risk",
        graph(
            "Flags",
            "Share of sequences with each flag. Truncation depends on max_tokens; the others should be zero.",
            SHARE,
            {"{{flag}}": q.FLAG_SHARES},
            span=8,
            links=links.PANEL,
        ),
        graph(
            "Warnings",
            "Share of sequences with each warning. A shift of traffic is not about the single sequence.",
            SHARE,
            {"{{warning}}": q.WARNING_SHARES},
            span=8,
            links=links.PANEL,
        ),
        graph(
            "Risk levels",
            "Share of sequences by risk level.",
            "short",
            {"{{risk_level}}": q.ENDED_BY_LEVEL},
            span=8,
            stacked=StackingMode.PERCENT,
            links=links.PANEL,
        ),
        graph(
            "Fault budget",
            f"Burn rate of the budget of {percent(_GOALS.fault_budget)} faulty sequences, over one hour and "
            f"six. Lines at 1, 6 and 14.4.",
            "short",
            {"{{gen_ai_request_model}}, 1 h": q.FAULT_BURN, "{{gen_ai_request_model}}, 6 h": q.FAULT_BURN_LONG},
            limits=[1, 6, 14.4],
            links=links.PANEL,
        ),
        graph(
            "Latency budget",
            f"Burn rate of the budget of {percent(_GOALS.first_token_budget)} of answers that begin after "
            f"{_GOALS.first_token_s:g} s.",
            "short",
            {"{{gen_ai_request_model}}, 1 h": q.LATENCY_BURN, "{{gen_ai_request_model}}, 6 h": q.LATENCY_BURN_LONG},
            limits=[1, 6, 14.4],
        ),
    )
    made = frame.row(
        made,
        "Traffic and latency",
        graph(
            "How sequences end",
            "Sequences a second by finish reason.",
            units.RequestsPerSecond,
            {"{{finish_reason}}": q.ENDED_BY_REASON},
            stacked=StackingMode.NORMAL,
        ),
        graph(
            "Sequences by server",
            f"How the load is spread: the {states.LINES} servers that ended most.",
            units.RequestsPerSecond,
            {"{{instance}}": states.ENDED_BY_SERVER},
        ),
        graph(
            "In flight",
            "Sequences in the engine, waiting ones included; those in a loop; those with an alarm.",
            "short",
            {"running": q.RUNNING, "looping": q.LOOPING, "alarmed": q.ALARMED},
            links=links.PANEL,
        ),
        graph(
            "Failed requests",
            "Share of requests answered with HTTP 5xx, and of sequences that ended in an error of the engine.",
            SHARE,
            {"HTTP 5xx": states.HTTP_FAILED, "error": states.ERRORS},
        ),
        graph(
            "Time to first token",
            f"From a request's arrival to its first token. {_OBJECTIVE}",
            units.Seconds,
            {f"p{round(100 * at)}": q.quantile(at, _FIRST_TOKEN) for at in (0.5, 0.95, 0.99)},
            limits=[_GOALS.first_token_s],
        ),
        graph(
            "Time per output token",
            "Each token after the first.",
            units.Seconds,
            {f"p{round(100 * at)}": q.quantile(at, _EACH_TOKEN) for at in (0.5, 0.95, 0.99)},
        ),
    )
    return frame.row(
        made,
        "The engine beside corevital",
        graph(
            "Queue",
            "vLLM's running and waiting requests, and the sequences that corevital follows, waiting ones included.",
            "short",
            {"waiting": states.ENGINE_WAITING, "running": states.ENGINE_RUNNING, "followed by corevital": q.RUNNING},
            span=8,
        ),
        graph(
            "KV cache used",
            f"The {states.LINES} servers where it was fullest. A full cache means waiting and preemptions.",
            SHARE,
            {"{{instance}}": states.KV_CACHE},
            span=8,
        ),
        graph(
            "Preemptions a second",
            "Sequences taken out of the batch to make room, as vLLM and as corevital count them.",
            "short",
            {"vLLM": states.ENGINE_PREEMPTIONS, "corevital": states.OUR_PREEMPTIONS},
            span=8,
        ),
        graph(
            "Tokens a second, in and out",
            "vLLM's prompt and generation tokens, and the output tokens whose logits corevital observed.",
            "short",
            {"in": states.TOKENS_IN, "out": states.TOKENS_OUT, "observed": q.TOKENS},
        ),
        rows(
            "Versions",
            "Servers by the versions of corevital and of the engine, from their first report on.",
            {"version": "corevital", "engine": "Engine", "engine_version": "Its version"},
            {"Servers": Column(query=states.VERSIONS)},
            order=["Servers"],
            span=12,
            no_value="no report yet",
        ),
    )


def _alerts() -> table.Panel:
    return rows(
        "What fires",
        "Since when its condition holds. The worst first; none, if empty.",
        {
            "alertname": "Alert",
            "gen_ai_request_model": "Model",
            "instance": "Server",
            CONFIG.labels.cluster: "Cluster",
        },
        {
            "Severity": Column(query=states.ALERT_RANK, states=colours.SEVERITIES, width=90),
            "Since": Column(query=states.ALERT_SINCE, unit="dateTimeAsIsoNoDateIfToday", width=150),
        },
        order=["Severity", "Since"],
        hidden=["job"],
        links={"Alert": links.ALERT, "Server": links.SERVER, "Model": links.MODEL},
        span=11,
        height=9,
        no_value="nothing fires",
    )


def _servers() -> table.Panel:
    return rows(
        "Servers, the worst first",
        "One row a server. Its state is that of its alerts. A dash: no traffic, or the engine has no such metric.",
        {"instance": "Server"}
        | {label: label.capitalize() for label in CONFIG.labels.server if label not in ("job", "instance")}
        | {CONFIG.labels.cluster: "Cluster"},
        {
            "State": Column(query=f"max by ({states.SERVER}) ({states.SERVER_STATE})", states=colours.STATES, width=90),
            "Since": Column(query=states.of_server(states.SERVER_SINCE), unit="dateTimeFromNow"),
            "Sequences": Column(query=states.of_server(states.SERVER_ENDED), unit=units.RequestsPerSecond),
            "Faulty": Column(
                query=states.of_server(states.SERVER_FAULTY),
                unit=SHARE,
                decimals=1,
                amber_from=_GOALS.fault_budget,
                red_from=CONFIG.outlier.loop_share,
            ),
            "High risk": Column(
                query=states.of_server(states.SERVER_HIGH_RISK),
                unit=SHARE,
                decimals=1,
                amber_from=_LIMITS.high_risk_share,
                red_from=CONFIG.outlier.high_risk_share,
            ),
            "HTTP 5xx": Column(
                query=states.of_server(states.SERVER_FAILED), unit=SHARE, decimals=1, amber_from=0.001, red_from=0.05
            ),
            "First token, p95": Column(
                query=states.of_server(states.SERVER_FIRST_TOKEN),
                unit=units.Seconds,
                amber_from=_GOALS.first_token_s / 2,
                red_from=_GOALS.first_token_s,
            ),
            "Waiting": Column(query=states.of_server(states.SERVER_WAITING)),
            "KV cache": Column(
                query=states.of_server(states.SERVER_KV_CACHE), unit=SHARE, decimals=0, amber_from=0.8, red_from=0.95
            ),
            "Tokens a second": Column(query=states.of_server(states.SERVER_TOKENS)),
            "Restarts, 6 h": Column(
                query=states.of_server(states.SERVER_RESTARTS), decimals=0, amber_from=1, red_from=_LIMITS.restarts_6h
            ),
            "Version": Column(query=states.of_server(states.SERVER_VERSIONS), hidden=True),
        },
        order=["State", "Faulty", "High risk", "HTTP 5xx", "First token, p95"],
        last={"version": "corevital", "engine_version": "Engine"},
        hidden=["job", "__name__"],
        links={"Server": links.SERVER},
        height=9,
        no_value="no server",
    )


def _models() -> table.Panel:
    return rows(
        "Models, the worst first",
        "One row a model. A click opens its dashboard.",
        {"gen_ai_request_model": "Model", CONFIG.labels.cluster: "Cluster"},
        {
            "State": Column(query=f"max by ({states.MODEL}) ({states.MODEL_STATE})", states=colours.STATES, width=90),
            "Sequences": Column(query=states.of_model(states.MODEL_ENDED), unit=units.RequestsPerSecond),
            "Fault budget used, 1 h": Column(
                query=states.of_model(states.FAULTS_OF_BUDGET), unit=SHARE, decimals=0, amber_from=0.5, red_from=1
            ),
            "High risk": Column(
                query=states.of_model(states.MODEL_HIGH_RISK),
                unit=SHARE,
                decimals=1,
                amber_from=_LIMITS.high_risk_share / 2,
                red_from=_LIMITS.high_risk_share,
            ),
            "Mean entropy": Column(query=states.of_model(states.MODEL_ENTROPY), unit=BITS, decimals=2),
            "First token, p95": Column(
                query=states.of_model(states.MODEL_FIRST_TOKEN),
                unit=units.Seconds,
                amber_from=_GOALS.first_token_s / 2,
                red_from=_GOALS.first_token_s,
            ),
            "Tokens a second": Column(query=states.of_model(states.MODEL_TOKENS)),
        },
        order=["State", "Fault budget used, 1 h"],
        links={"Model": links.MODEL},
        height=5,
        no_value="no model",
    )
