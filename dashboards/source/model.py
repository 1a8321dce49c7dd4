"""*Model*: one model's distributions over time, compared with an earlier period such as before a deploy."""

from dashboards.source import frame, links, pages
from dashboards.source import queries as q
from dashboards.source.config import CONFIG, percent
from dashboards.source.panels import BITS, SHARE, distribution, graph, number
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import stat, timeseries
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import StackingMode
from grafana_foundation_sdk.models.dashboard import VariableOption

_LIMITS = CONFIG.thresholds
_BEFORE = "$compare before"
_EACH_TOKEN = "gen_ai_server_time_per_output_token_seconds"  # noqa: S105 - a name, not a secret
_COMPARED = " Dashed: the same time of $compare ago."


def dashboard() -> builders.Dashboard:
    """Build the dashboard."""
    description = "One model's distributions, and whether they have changed since a deploy."
    made = frame.frame(pages.MODEL, "corevital: Model", description, start="now-6h")
    made = made.variables(
        [
            frame.datasource("datasource", "prometheus", "Prometheus"),
            frame.datasource("tempo", "tempo", "Tempo"),
            frame.cluster(),
            frame.model(several=False),
            frame.instance(),
            builders.CustomVariable("compare")
            .label("Compare with")
            .description("Age of the period drawn dashed. After a deploy, choose a period before it.")
            .values("1h,3h,6h,12h,1d,2d,7d")
            .current(VariableOption(text="1d", value="1d", selected=True)),
        ]
    )
    for mark in frame.marks():
        made = made.annotation(mark)
    made = frame.row(
        made,
        "Before and after: means of the time range shown, and of the same range $compare ago",
        _means("Entropy", "Mean entropy of answers.", "corevital_entropy_bits", BITS),
        _means("Surprisal", "Mean surprisal of the tokens sampled.", "corevital_surprisal_bits", BITS),
        _means("Risk", "Mean risk score; 1 is bad.", "corevital_risk_score", "none"),
        _means("Time per output token", "Mean, after the first.", _EACH_TOKEN, units.Seconds),
    )
    made = frame.row(
        made,
        "Distributions",
        distribution("Entropy", "Mean entropy of each answer.", BITS, q.buckets("corevital_entropy_bits")),
        _quantiles("Entropy, p50 and p95", "corevital_entropy_bits", BITS),
        distribution(
            "Surprisal", "Mean surprisal of each answer's tokens.", BITS, q.buckets("corevital_surprisal_bits")
        ),
        _quantiles("Surprisal, p50 and p95", "corevital_surprisal_bits", BITS),
        distribution("Risk score", "Risk score of each answer; 1 is bad.", "none", q.buckets("corevital_risk_score")),
        _quantiles("Risk score, p50 and p95", "corevital_risk_score", "none"),
    )
    made = frame.row(
        made,
        "Compared with the last week, as in the alerts",
        graph(
            "Entropy of an hour",
            "Mean of an hour, the week's mean, and four of its standard deviations around: outside of them, and "
            "a fifth of the mean away, CorevitalEntropyShift fires.",
            BITS,
            {
                "this hour": q.ENTROPY_HOUR,
                "its week": q.ENTROPY_WEEK,
                "upper limit": q.ENTROPY_WEEK_HIGH,
                "lower limit": q.ENTROPY_WEEK_LOW,
            },
        ),
        graph(
            "High risk and truncation of an hour",
            f"Above {percent(_LIMITS.high_risk_share)} and {percent(_LIMITS.truncated_share)}, and "
            f"{_LIMITS.times_own_week:g} times the share of the last week, CorevitalHighRiskShareRising and "
            "CorevitalTruncationRising fire.",
            SHARE,
            {
                "high risk, this hour": q.HIGH_RISK_HOUR,
                "high risk, its week": q.HIGH_RISK_WEEK,
                "truncated, this hour": q.TRUNCATED_HOUR,
                "truncated, its week": q.TRUNCATED_WEEK,
            },
            links=links.PANEL,
        ),
    )
    return frame.row(
        made,
        "Health, traffic and latency",
        graph(
            "Flags", "Share of sequences with each flag.", SHARE, {"{{flag}}": q.FLAG_SHARES}, span=8, links=links.PANEL
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
            "How sequences end",
            "By finish reason.",
            units.RequestsPerSecond,
            {"{{finish_reason}}": q.ENDED_BY_REASON},
            span=8,
            stacked=StackingMode.NORMAL,
        ),
        graph(
            "Length of answers",
            "Mean output tokens of a sequence." + _COMPARED,
            "short",
            {"tokens": q.TOKENS_EACH, _BEFORE: q.before(q.TOKENS_EACH)},
        ),
        graph(
            "In flight",
            "Sequences in the engine; those in a loop; those with an alarm.",
            "short",
            {"running": q.RUNNING, "looping": q.LOOPING, "alarmed": q.ALARMED},
        ),
        _quantiles("Time to first token, p50 and p95", "gen_ai_server_time_to_first_token_seconds", units.Seconds),
        _quantiles("Time per output token, p50 and p95", _EACH_TOKEN, units.Seconds),
    )


def _means(title: str, text: str, histogram: str, unit: str) -> stat.Panel:
    query = q.mean_of_range(histogram)
    return number(title, text, unit, {"now": query, _BEFORE: q.before(query)}, span=6, decimals=2)


def _quantiles(title: str, histogram: str, unit: str) -> timeseries.Panel:
    queries: dict[str, str] = {}
    for at in (0.5, 0.95):
        query = q.quantile(at, histogram)
        queries |= {f"p{round(100 * at)}": query, f"p{round(100 * at)}, {_BEFORE}": q.before(query)}
    return graph(
        title, "Half of the answers, and 95 % of them, are below." + _COMPARED, unit, queries, links=links.PANEL
    )
