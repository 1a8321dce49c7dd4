"""What the chart makes, for the tests of each part of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.dashboards import chart_cases


@pytest.fixture
def rendered() -> dict[str, dict[str, Any]]:
    return chart_cases.rendered()


@pytest.fixture
def manifests(rendered: dict[str, dict[str, Any]], case: str) -> list[dict[str, Any]]:
    return copy.deepcopy(rendered[case]["manifests"])
