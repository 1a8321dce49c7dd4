"""*Requests at risk*: from a bad minute to the bad requests, in Tempo and in Langfuse."""

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.models import units

from dashboards.source import frame
from dashboards.source import queries as q
from dashboards.source.panels import SHARE, graph, traces

LANGFUSE = "${langfuse}/project/${langfuse_project}/traces/${__data.fields.traceIdHidden}"
_CLICK = " A click on the span opens its trace in Tempo, on the request's id the same in Langfuse."


def dashboard() -> builders.Dashboard:
    """Make it."""
    description = "Which requests were at risk or faulty, each with the way to its trace."
    made = frame.frame(frame.REQUESTS, "corevital: Requests at risk", description, start="now-1h")
    for variable in (
        frame.datasource("datasource", "prometheus", "Prometheus"),
        frame.datasource("tempo", "tempo", "Tempo"),
        frame.model(),
        frame.instance(),
        builders.TextBoxVariable("risk").label("Risk from").default_value("0.7"),
        builders.TextBoxVariable("langfuse").label("Langfuse").default_value("http://localhost:3001"),
        builders.TextBoxVariable("langfuse_project").label("Langfuse project").default_value("corevital"),
    ):
        made = made.with_variable(variable)
    made = made.with_row(Row("When"))
    for panel in (
        graph(
            "High risk",
            "Share of sequences at high risk. Drag over a peak, and the tables below show its requests.",
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
    ):
        made = made.with_panel(panel)
    made = made.with_row(Row("Which"))
    for title, text, query in (
        ("High risk", "Spans whose risk score is at or above the value chosen above.", q.HIGH_RISK_TRACES),
        ("NaN or Inf", "Spans with NaN or Inf among their logits. What they say is arbitrary.", q.NAN_TRACES),
        ("Repetition loops", "Spans that fell into a repetition loop.", q.LOOP_TRACES),
        ("Truncated", "Spans that ended at their length limit.", q.TRUNCATED_TRACES),
        ("Late", "Spans whose first token came after more than 2.5 s.", q.LATE_TRACES),
    ):
        made = made.with_panel(traces(title, text + _CLICK, query, langfuse=LANGFUSE))
    return made
