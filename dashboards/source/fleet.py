"""*Fleet health*: are the models healthy, and since when? All models and servers at a glance."""

from dashboards.source import frame, pages
from dashboards.source import queries as q
from dashboards.source.config import CONFIG, percent
from dashboards.source.panels import BITS, SHARE, alerts, by_label, graph, number
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import StackingMode

_GOALS = CONFIG.objectives
_OBJECTIVE = f"The objective is {_GOALS.first_token_s:g} s for {percent(1 - _GOALS.first_token_budget)}."
_FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"
_EACH_TOKEN = "gen_ai_server_time_per_output_token_seconds"


def dashboard() -> builders.Dashboard:
    """Build the dashboard."""
    made = frame.frame(pages.FLEET, "corevital: Fleet health", "Is every model healthy, and since when?")
    made = made.variables(
        [
            frame.datasource("datasource", "prometheus", "Prometheus"),
            frame.cluster(),
            frame.model(),
            frame.instance(),
        ]
    )
    made = made.annotation(frame.restarts())
    made = frame.row(
        made,
        "Now",
        number(
            "Servers down",
            "vLLM servers whose /metrics Prometheus cannot read.",
            "short",
            {"": q.SERVERS_DOWN},
            red_from=1,
        ),
        number("Alerts", "Alerts of corevital that are firing.", "short", {"": q.FIRING}, red_from=1),
        number(
            "Sequences a second",
            "Sequences that ended; a request with n=2 is two.",
            units.RequestsPerSecond,
            {"": q.ENDED},
        ),
        number(
            "High risk",
            "Share of sequences whose risk score is at or above COREVITAL_RISK_THRESHOLD.",
            SHARE,
            {"": q.HIGH_RISK_SHARE},
            red_from=CONFIG.thresholds.high_risk_share,
            decimals=1,
        ),
        number(
            "Faults",
            "Flags for NaN, Inf and repetition loops in the time shown, independent of the risk score.",
            "short",
            {"": q.FAULTS_IN_RANGE},
            red_from=1,
            decimals=0,
        ),
        number(
            "First token, p95",
            f"One answer in twenty begins later than this. {_OBJECTIVE}",
            units.Seconds,
            {"": q.quantile(0.95, _FIRST_TOKEN)},
            red_from=_GOALS.first_token_s,
        ),
        alerts("Firing alerts", "From Prometheus' own ALERTS series; Alertmanager may have silenced some.", q.ALERTS),
        by_label(
            "Models",
            "One row per model; a click opens its dashboard.",
            ("gen_ai_request_model", "Model"),
            {
                "Sequences a second": (q.ENDED_BY_MODEL, units.RequestsPerSecond),
                "High risk": (q.HIGH_RISK_SHARE_BY_MODEL, SHARE),
                "Faults": (q.FAULT_SHARE_BY_MODEL, SHARE),
                "Mean entropy": (q.mean("corevital_entropy_bits", by="gen_ai_request_model"), BITS),
                "First token, p95": (q.quantile(0.95, _FIRST_TOKEN, by="gen_ai_request_model"), units.Seconds),
                "Tokens a second": (q.TOKENS_BY_MODEL, "short"),
            },
            (
                "Its distributions",
                f"/d/{pages.MODEL}?var-model=${{__value.raw}}&${{__url_time_range}}&${{instance:queryparam}}&${{datasource:queryparam}}",
            ),
        ),
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
        ),
        graph(
            "Warnings",
            "Share of sequences with each warning. A shift of traffic is not about the single sequence.",
            SHARE,
            {"{{warning}}": q.WARNING_SHARES},
            span=8,
        ),
        graph(
            "Risk levels",
            "Share of sequences by risk level.",
            "short",
            {"{{risk_level}}": q.ENDED_BY_LEVEL},
            span=8,
            stacked=StackingMode.PERCENT,
        ),
        graph(
            "Fault budget",
            f"Burn rate of the budget of {percent(_GOALS.fault_budget)} faulty sequences, over one hour and "
            f"six. Lines at 1, 6 and 14.4.",
            "short",
            {"{{gen_ai_request_model}}, 1 h": q.FAULT_BURN, "{{gen_ai_request_model}}, 6 h": q.FAULT_BURN_LONG},
            limits=[1, 6, 14.4],
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
    return frame.row(
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
            "How the load is spread over servers.",
            units.RequestsPerSecond,
            {"{{instance}}": q.ENDED_BY_INSTANCE},
            stacked=StackingMode.NORMAL,
        ),
        graph(
            "In flight",
            "Sequences in the engine, waiting ones included; those in a loop; those with an alarm.",
            "short",
            {"running": q.RUNNING, "looping": q.LOOPING, "alarmed": q.ALARMED},
        ),
        graph("Tokens a second", "Output tokens whose logits were observed.", "short", {"tokens": q.TOKENS}),
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
