"""*Runbooks*: the pages of ``dashboards/runbooks``, so that an alert's link works where the dashboards are."""

from pathlib import Path
from typing import Final

from dashboards.source import frame, pages
from dashboards.source.panels import page
from grafana_foundation_sdk.builders import dashboard as builders

FOLDER: Final = Path(__file__).parents[1] / "runbooks"


def dashboard() -> builders.Dashboard:
    """Build the dashboard."""
    made = frame.frame(pages.RUNBOOKS, "corevital: Runbooks", "What each alert means, how to investigate, what to do.")
    for name in pages.ORDER:
        markdown = (FOLDER / f"{name}.md").read_text()
        made = made.with_panel(page(name, f"What to do when {name} fires.", markdown))
    return made
