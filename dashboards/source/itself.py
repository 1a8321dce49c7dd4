"""*corevital itself*: does the watching work, what does it lose, how late is it, what does it cost?"""

from dashboards.source import frame
from dashboards.source import queries as q
from dashboards.source.panels import SHARE, graph, number
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import units

_LAG = "corevital_telemetry_lag_seconds"


def dashboard() -> builders.Dashboard:
    """Make it."""
    made = frame.frame(frame.ITSELF, "corevital: corevital itself", "Whether the watching works: loss, lag and cost.")
    made = made.variables(
        [
            frame.datasource("datasource", "prometheus", "Prometheus"),
            frame.model(),
            frame.instance(),
        ]
    )
    made = made.annotation(frame.restarts())
    made = frame.row(
        made,
        "Now",
        number("Servers up", "vLLM servers that answer.", "short", {"": q.SERVERS_UP}),
        number(
            "Without corevital",
            "vLLM servers that answer and have no metric of ours.",
            "short",
            {"": q.PLUGIN_ABSENT},
            red_from=1,
        ),
        number(
            "Faults",
            "Exceptions inside corevital in the time shown. None reached a request.",
            "short",
            {"": q.FAULTS},
            red_from=1,
            decimals=0,
        ),
        number(
            "Report, p95",
            "One report in twenty comes later than this after its sequence's end.",
            units.Seconds,
            {"": q.quantile(0.95, _LAG, q.INSTANCE)},
            red_from=1,
        ),
        number(
            "CPU a sequence",
            "CPU time of the telemetry thread for each sequence.",
            units.Seconds,
            {"": q.CPU_A_SEQUENCE},
        ),
        number("Series", "Series of ours in Prometheus.", "short", {"": q.SERIES}),
    )
    made = frame.row(
        made,
        "Loss",
        graph(
            "Seen by vLLM and by corevital",
            "Requests that vLLM ended, and sequences that corevital reported. Ours are more with n > 1, and "
            "fewer where requests ask not to be measured.",
            units.RequestsPerSecond,
            {"vLLM": q.VLLM_ENDED, "corevital": q.OURS_ENDED},
        ),
        graph(
            "Share lost",
            "Of requests, or of tokens for records, in 15 minutes. Above 1 % CorevitalTelemetryLost fires.",
            SHARE,
            {"{{instance}} {{what}}": q.LOST_SHARE},
            limits=[0.01],
            no_value="nothing counted",
        ),
        graph("Dropped", "Items a second, by what and why.", "short", {"{{what}}: {{why}}": q.DROPPED}),
        graph(
            "Delivered over OTLP",
            "Spans (traces) and data points (metrics) a second that an endpoint took.",
            "short",
            {"{{signal}}": q.EXPORTED},
        ),
    )
    made = frame.row(
        made,
        "Lag",
        graph(
            "From a sequence's end to its report",
            "Requests do not wait for it. A sequence whose records do not come waits for them for two seconds.",
            units.Seconds,
            {f"p{round(100 * at)}": q.quantile(at, _LAG, q.INSTANCE) for at in (0.5, 0.95, 0.99)},
            limits=[1],
        ),
        graph("What waits", "Events for the telemetry thread, reports for the store.", "short", {"{{what}}": q.QUEUED}),
    )
    return frame.row(
        made,
        "Cost",
        graph(
            "CPU of the telemetry thread",
            "Cores, by server. What the engine's step pays is not in it.",
            "short",
            {"{{instance}}": q.CPU},
            limits=[0.8],
        ),
        graph(
            "Time to scrape /metrics",
            "How long the server takes to write its page, vLLM's metrics included.",
            units.Seconds,
            {"{{instance}}": q.SCRAPE_SECONDS},
        ),
        graph(
            "Tokens observed a second",
            "What the cost grows with, by model.",
            "short",
            {"{{gen_ai_request_model}}": q.TOKENS_BY_MODEL},
        ),
        graph(
            "The stack around it",
            "1 where Prometheus can read the part's metrics.",
            "short",
            {"{{job}}": q.STACK_UP},
            no_value="no other part is scraped",
        ),
    )
