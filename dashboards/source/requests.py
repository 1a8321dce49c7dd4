"""*Requests at risk*: from a bad minute to its requests, in Tempo and Langfuse."""

from dashboards.source import frame, links, pages, traceql
from dashboards.source import queries as q
from dashboards.source.config import CONFIG
from dashboards.source.panels import SHARE, graph
from dashboards.source.tables import traces
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models import units

_LATE = f"Spans whose first token came after more than {CONFIG.objectives.first_token_s:g} s."
_CLICK = " A click on the span opens its trace in Tempo; on the response's id, its tokens or the trace in Langfuse."


def dashboard() -> builders.Dashboard:
    """Build the dashboard."""
    description = "Requests at high risk or with fault flags, each with a link to its trace."
    made = frame.frame(pages.REQUESTS, "corevital: Requests at risk", description, start="now-1h")
    made = made.variables(
        [
            frame.datasource("datasource", "prometheus", "Prometheus"),
            frame.datasource("tempo", "tempo", "Tempo"),
            frame.cluster(),
            frame.model(),
            frame.instance(),
            builders.TextBoxVariable("risk").label("Risk from").default_value("0.7"),
            builders.TextBoxVariable("tenant").label("Tenant"),
            builders.TextBoxVariable("hub").label("Hub").default_value(CONFIG.urls.hub),
            builders.TextBoxVariable("langfuse").label("Langfuse").default_value("http://localhost:3001"),
            builders.TextBoxVariable("langfuse_project").label("Langfuse project").default_value("corevital"),
        ]
    )
    made = frame.row(
        made,
        "When",
        graph(
            "High risk",
            "Share of sequences at high risk. Drag over a peak: the tables below show its requests.",
            SHARE,
            {"high risk": q.HIGH_RISK_SHARE},
            span=8,
        ),
        graph("Flags", "Share of sequences with each flag.", SHARE, {"{{flag}}": q.FLAG_SHARES}, span=8),
        graph(
            "Duration by risk level, p95",
            "From the Collector's span metrics, with exemplars: a dot on the graph opens that request's trace.",
            units.Seconds,
            {"{{corevital_risk_level}}": q.SPAN_SECONDS},
            span=8,
            no_value="no span metrics: they come from the Collector",
        ),
    )
    made = frame.row(
        made,
        "Which",
        _traces("High risk", "Spans whose risk score is at or above the value chosen above.", traceql.HIGH_RISK),
        _traces("NaN or Inf", "Spans with NaN or Inf among their logits. Their text is arbitrary.", traceql.NAN),
        _traces("Repetition loops", "Spans that fell into a repetition loop.", traceql.LOOPS),
        _traces(
            "Warnings",
            "Spans with sustained high entropy, a collapsed distribution or an alarm.",
            traceql.WARNINGS,
        ),
        _traces("Truncated", "Spans that ended at their length limit.", traceql.TRUNCATED),
        _traces("Late", _LATE, traceql.LATE),
    )
    return frame.row(
        made,
        "Of one tenant",
        _traces(
            "At risk, of the tenant chosen above",
            f"Spans of requests with the tag {CONFIG.labels.tenant}TENANT whose risk is at or above the value chosen "
            "above, or with a fault flag.",
            traceql.TENANT,
        ),
    )


def _traces(title: str, text: str, query: str) -> table.Panel:
    return traces(title, text + _CLICK, query, links=(links.TOKENS, links.LANGFUSE))
