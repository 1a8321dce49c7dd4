"""*Requests at risk*: from a bad minute to its requests, in Tempo and Langfuse."""

from dashboards.source import frame, pages
from dashboards.source import queries as q
from dashboards.source.config import CONFIG
from dashboards.source.panels import SHARE, graph, traces
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models import units

LANGFUSE = "${langfuse}/project/${langfuse_project}/traces/${__data.fields.traceIdHidden}"
_LATE = f"Spans whose first token came after more than {CONFIG.objectives.first_token_s:g} s."
_CLICK = " A click on the span opens its trace in Tempo, on the request's id the same in Langfuse."


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
    return frame.row(
        made,
        "Which",
        _traces("High risk", "Spans whose risk score is at or above the value chosen above.", q.HIGH_RISK_TRACES),
        _traces("NaN or Inf", "Spans with NaN or Inf among their logits. Their text is arbitrary.", q.NAN_TRACES),
        _traces("Repetition loops", "Spans that fell into a repetition loop.", q.LOOP_TRACES),
        _traces(
            "Warnings",
            "Spans with sustained high entropy, a collapsed distribution or an alarm.",
            q.WARNING_TRACES,
        ),
        _traces("Truncated", "Spans that ended at their length limit.", q.TRUNCATED_TRACES),
        _traces("Late", _LATE, q.LATE_TRACES),
    )


def _traces(title: str, text: str, query: str) -> table.Panel:
    return traces(title, text + _CLICK, query, langfuse=LANGFUSE)
