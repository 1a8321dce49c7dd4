"""One request's reports as JSON, for the command line and for the hub's HTTP port."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from corevital.text import printable
from corevital_otel.store.reader import StoredReport

_MOST_IDS: Final = 5
_SHOWN_ID: Final = 100
"""Characters of an id in a message."""


def several(reports: Sequence[StoredReport]) -> str:
    """The first ids of these reports, for a message; "" if all have the same."""
    ids = list(dict.fromkeys(report.request_id for report in reports))
    if len(ids) < 2:
        return ""
    return ", ".join(printable(one, _SHOWN_ID) for one in ids[:_MOST_IDS]) + (", …" if len(ids) > _MOST_IDS else "")


def document(reports: Sequence[StoredReport]) -> str:
    """The reports as a JSON array, printable ASCII over several lines, without a line feed at the end."""
    text = json.dumps([report.as_json() for report in reports], indent=2)
    return text.replace("\x7f", "\\u007f")  # the only unprintable character that JSON does not escape
