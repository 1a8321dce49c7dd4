"""*Runbooks*: the pages of ``dashboards/runbooks``, so that an alert's link works where the dashboards are."""

from pathlib import Path
from typing import Final

from dashboards.source import frame
from dashboards.source.panels import page
from grafana_foundation_sdk.builders import dashboard as builders

FOLDER: Final = Path(__file__).parents[1] / "runbooks"
ORDER: Final = (
    "CorevitalNaNLogits",
    "CorevitalInfLogits",
    "CorevitalStuckInLoops",
    "CorevitalLoopShareHigh",
    "CorevitalHighRiskShareRising",
    "CorevitalEntropyShift",
    "CorevitalTruncationRising",
    "CorevitalTokenLatencyRising",
    "CorevitalFaultBudgetBurn",
    "CorevitalLatencyBudgetBurn",
    "CorevitalTargetDown",
    "CorevitalTargetsAbsent",
    "CorevitalPluginAbsent",
    "CorevitalRequestsUnseen",
    "CorevitalTelemetryLost",
    "CorevitalTelemetryLagging",
    "CorevitalInternalFaults",
    "CorevitalCostHigh",
    "CorevitalTrafficShifted",
)
"""An alert's place is its panel's number, which stands in its ``runbook_url``: append new ones at the end."""


def dashboard() -> builders.Dashboard:
    """Make it."""
    made = frame.frame(frame.RUNBOOKS, "corevital: Runbooks", "What each alert means, how to look, what to do.")
    for name in ORDER:
        markdown = (FOLDER / f"{name}.md").read_text()
        made = made.with_panel(page(name, f"What to do when {name} fires.", markdown))
    return made
