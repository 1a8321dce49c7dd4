"""*corevital itself*: does it work, what does it lose, how late is it, what does it cost?"""

from dashboards.source import frame, pages, states
from dashboards.source import queries as q
from dashboards.source.config import CONFIG, percent
from dashboards.source.panels import SHARE, graph, number
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import units

_LIMITS = CONFIG.thresholds
_LAG = "corevital_telemetry_lag_seconds"


def dashboard() -> builders.Dashboard:
    """Build the dashboard."""
    made = frame.frame(pages.ITSELF, "corevital: corevital itself", "Whether corevital works: loss, lag and cost.")
    made = made.variables(
        [
            frame.datasource("datasource", "prometheus", "Prometheus"),
            frame.cluster(),
            frame.model(),
            frame.instance(),
        ]
    )
    for mark in frame.marks():
        made = made.annotation(mark)
    made = frame.row(
        made,
        "Now",
        number("Servers up", "vLLM servers that answer.", "short", {"": q.SERVERS_UP}, span=3),
        number(
            "Without corevital",
            "vLLM servers that answer without corevital metrics.",
            "short",
            {"": q.PLUGIN_ABSENT},
            red_from=1,
            span=3,
        ),
        number(
            "Faults",
            "Exceptions inside corevital in the time range shown. None reached a request.",
            "short",
            {"": q.FAULTS},
            red_from=1,
            decimals=0,
            span=3,
        ),
        number(
            "Unobserved",
            "Sequences in the time range shown that the engine ran and nobody measured.",
            "short",
            {"": q.UNOBSERVED},
            red_from=1,
            decimals=0,
            span=3,
        ),
        number(
            "Report, p95",
            "One report in twenty is made later than this after the sequence's end.",
            units.Seconds,
            {"": q.quantile(0.95, _LAG, q.INSTANCE)},
            red_from=_LIMITS.lag_s,
        ),
        number(
            "CPU a sequence",
            "CPU time of the telemetry thread for each sequence.",
            units.Seconds,
            {"": q.CPU_A_SEQUENCE},
        ),
        number("Series", "corevital's series in Prometheus.", "short", {"": q.SERIES}),
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
            f"Of requests, or of tokens for records, in 15 minutes, on the {states.LINES} servers that lose most. "
            f"Above {percent(_LIMITS.lost_share)} CorevitalTelemetryLost fires.",
            SHARE,
            {"{{instance}} {{what}}": states.LOST_SHARE},
            limits=[_LIMITS.lost_share],
            no_value="nothing counted",
        ),
        graph("Dropped", "Lost items per second, by what and why.", "short", {"{{what}}: {{why}}": q.DROPPED}),
        graph(
            "Delivered over OTLP",
            "Spans (traces) and data points (metrics) per second that an endpoint accepted.",
            "short",
            {"{{signal}}": q.EXPORTED},
        ),
    )
    made = frame.row(
        made,
        "Lag",
        graph(
            "From a sequence's end to its report",
            "Requests do not wait for it. A sequence with missing records waits for them for two seconds.",
            units.Seconds,
            {f"p{round(100 * at)}": q.quantile(at, _LAG, q.INSTANCE) for at in (0.5, 0.95, 0.99)},
            limits=[_LIMITS.lag_s],
        ),
        graph("Queues", "Events for the telemetry thread, reports for the store.", "short", {"{{what}}": q.QUEUED}),
    )
    return frame.row(
        made,
        "Cost",
        graph(
            "CPU of the telemetry thread",
            f"Cores, on the {states.LINES} servers that use most. The cost within the engine's step is not included.",
            "short",
            {"{{instance}}": states.OUR_CPU},
            limits=[_LIMITS.cores],
        ),
        graph(
            "Time to scrape /metrics",
            f"Time to write the page, vLLM's metrics included: the {states.LINES} slowest servers.",
            units.Seconds,
            {"{{instance}}": states.SCRAPE_SECONDS},
        ),
        graph(
            "Tokens observed a second",
            "The cost grows with these. By model.",
            "short",
            {"{{gen_ai_request_model}}": q.TOKENS_BY_MODEL},
        ),
        graph(
            "The monitoring stack",
            "1 where Prometheus can read the part's metrics.",
            "short",
            {"{{job}}": q.STACK_UP},
            no_value="no other part is scraped",
        ),
    )
