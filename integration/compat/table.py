"""The compatibility table's columns: which test counts where, and what a cell says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

RUNNERS: Final = {"v1": "model runner V1", "mrv2": "Model Runner V2"}
FRONTENDS: Final = {
    "rust": "Rust frontend",
    "grpc": "gRPC server",
    "headless": "`--headless`",
    "batch": "`run-batch`",
    "offline": "offline `LLM`",
}
"""Columns by the name in ``integration/tests/frontends/test_NAME.py``."""
COLUMNS: Final = {**RUNNERS, **FRONTENDS}

_FRONTEND_TESTS: Final = "integration.tests.frontends.test_"
_V2_FILES: Final = ("test_v2_slots",)

Found = dict[str, Counter[str]]
"""By column, how many tests passed, failed and were skipped."""


def column_of(module: str, test: str) -> str:
    """The one column in which a test counts.

    Args:
        module: the ``classname`` of pytest's report.
        test: its name, with its parameters.
    """
    frontend = module.removeprefix(_FRONTEND_TESTS).split(".")[0]
    if module.startswith(_FRONTEND_TESTS) and frontend in FRONTENDS:
        return frontend
    return "mrv2" if "mrv2" in f"{module}.{test}" or any(file in module for file in _V2_FILES) else "v1"


def counts(report: Path) -> Found:
    """What the runs of a version printed, from pytest's JUnit report."""
    found = {column: Counter[str]() for column in COLUMNS}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it
        column = column_of(case.get("classname", ""), case.get("name", ""))
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[column][kinds[0] if kinds else "passed"] += 1
    return found


def is_bad(found: Found) -> bool:
    """Whether a test failed."""
    return any(count["failure"] + count["error"] for count in found.values())


def head() -> str:
    """The table's first two lines."""
    return f"| vLLM (CPU build) | {' | '.join(COLUMNS.values())} |\n|{' --- |' * (len(COLUMNS) + 1)}"


def row(version: str, found: Mapping[str, Counter[str]]) -> str:
    """The line of a version."""
    return f"| {version} | {' | '.join(_cell(found[column]) for column in COLUMNS)} |"


def _cell(found: Counter[str]) -> str:
    """What ran; ``not run`` where each test was skipped, or there is none."""
    if bad := found["failure"] + found["error"]:
        return f"**{bad} failed**, {found['passed']} passed"
    return f"{found['passed']} passed" if found["passed"] else "not run"
