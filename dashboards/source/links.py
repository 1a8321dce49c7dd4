"""Where a click leads: other dashboards with the same time and selection, traces in Tempo, a request's report."""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from dashboards.source import pages
from dashboards.source.traceql import at_risk

Link = Mapping[str, Any]
_KEPT: Final = "&".join(f"${{{name}:queryparam}}" for name in ("datasource", "tempo", "cluster"))
_SELECTED: Final = "${model:queryparam}&${instance:queryparam}"
_TIME: Final = "${__url_time_range}"


def _link(title: str, url: str, *, new_tab: bool = False) -> Link:
    return {"title": title, "url": url, "targetBlank": new_tab}


def _explore(query: str) -> str:
    """Grafana's Explore with a TraceQL query over the time shown."""
    source = {"type": "tempo", "uid": "${tempo}"}
    asked = {
        "refId": "A",
        "datasource": source,
        "queryType": "traceql",
        "tableType": "spans",
        "limit": 50,
        "query": query,
    }
    pane = {"datasource": "${tempo}", "queries": [asked], "range": {"from": "${__from}", "to": "${__to}"}}
    # Variables stay readable to Grafana, which fills them in.
    return "/explore?schemaVersion=1&panes=" + quote(json.dumps({"a": pane}, separators=(",", ":")), safe="${}:,")


AT_RISK: Final = _link("Requests at risk in this time", f"/d/{pages.REQUESTS}?{_TIME}&{_KEPT}&{_SELECTED}")
"""With tables of traces."""
TRACES: Final = _link("Traces at risk in Explore (TraceQL)", _explore(at_risk("${model:pipe}")), new_tab=True)
PANEL: Final = (AT_RISK, TRACES)
"""From a graph: a click on a point, then on one of these."""

_OF_VALUE: Final = "${__value.raw:percentencode}"
SERVER: Final = (
    _link("Only this server", f"/d/{pages.FLEET}?var-instance={_OF_VALUE}&{_TIME}&{_KEPT}&${{model:queryparam}}"),
    _link(
        "Its requests at risk", f"/d/{pages.REQUESTS}?var-instance={_OF_VALUE}&{_TIME}&{_KEPT}&${{model:queryparam}}"
    ),
    _link("corevital on it", f"/d/{pages.ITSELF}?var-instance={_OF_VALUE}&{_TIME}&{_KEPT}&${{model:queryparam}}"),
)
MODEL: Final = (
    _link("Its distributions", f"/d/{pages.MODEL}?var-model={_OF_VALUE}&{_TIME}&{_KEPT}&${{instance:queryparam}}"),
    _link(
        "Its requests at risk", f"/d/{pages.REQUESTS}?var-model={_OF_VALUE}&{_TIME}&{_KEPT}&${{instance:queryparam}}"
    ),
)
ALERT: Final = (_link("Runbooks", f"/d/{pages.RUNBOOKS}"), AT_RISK)

TOKENS: Final = _link(
    "Its tokens: corevital show ${__value.raw}",
    "${hub}/corevital/v1/requests/${__value.raw:percentencode}",
    new_tab=True,
)
"""The hub's report with the per-token series, under the command that draws it."""
LANGFUSE: Final = _link(
    "Trace in Langfuse", "${langfuse}/project/${langfuse_project}/traces/${__data.fields.traceIdHidden}", new_tab=True
)
