"""The compatibility table: every test counts in one column, and a cell says only what ran."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from integration.compat.table import COLUMNS, FRONTENDS, column_of, counts, head, is_bad, row

ROOT = Path(__file__).resolve().parents[2]


def report(folder: Path, *cases: tuple[str, str, str]) -> Path:
    """pytest's JUnit report of these tests: module, name, and the tag within if it did not pass."""
    suite = ET.Element("testsuite")
    for module, name, tag in cases:
        case = ET.SubElement(suite, "testcase", classname=module, name=name)
        if tag:
            ET.SubElement(case, tag)
    ET.ElementTree(suite).write(folder / "tests.xml")
    return folder / "tests.xml"


@pytest.mark.parametrize(
    ("module", "test", "column"),
    [
        ("integration.tests.engine.test_tokens", "test_equal[v1]", "v1"),
        ("integration.tests.engine.test_tokens", "test_equal[mrv2]", "mrv2"),
        ("integration.tests.engine.test_v2_slots", "test_life", "mrv2"),
        ("integration.tests.frontends.test_rust", "test_spans[mrv2]", "rust"),
        ("integration.tests.frontends.test_grpc.TestStream", "test_ends", "grpc"),
        ("integration.tests.frontends.test_headless", "test_two_hosts", "headless"),
        ("integration.tests.frontends.test_batch", "test_rows", "batch"),
        ("integration.tests.frontends.test_offline", "test_rows", "offline"),
        ("integration.tests.test_offline", "test_rows", "v1"),
    ],
)
def test_each_test_counts_in_one_column(module: str, test: str, column: str) -> None:
    assert column_of(module, test) == column


def test_a_cell_says_what_passed_what_failed_and_that_nothing_ran(tmp_path: Path) -> None:
    frontends = "integration.tests.frontends"
    found = counts(
        report(
            tmp_path,
            ("integration.tests.engine.test_tokens", "a", ""),
            ("integration.tests.engine.test_tokens", "b", ""),
            (f"{frontends}.test_rust", "a", ""),
            (f"{frontends}.test_rust", "b", "failure"),
            (f"{frontends}.test_rust", "c", "error"),
            (f"{frontends}.test_grpc", "a", "skipped"),
            (f"{frontends}.test_batch", "a", "skipped"),
            (f"{frontends}.test_batch", "b", ""),
        )
    )
    assert row("0.32.0", found) == (
        "| 0.32.0 | 2 passed | not run | **2 failed**, 1 passed | not run | not run | 1 passed | not run |"
    )
    assert is_bad(found)
    assert not is_bad(counts(report(tmp_path, (f"{frontends}.test_grpc", "a", "skipped"))))


def test_the_page_has_the_tables_columns_and_cells_of_its_form() -> None:
    page = (ROOT / "docs/develop/compatibility.md").read_text()
    assert f"{head()}\n" in page
    rows = page.split(head(), 1)[1].split("\n\n", 1)[0].strip().splitlines()
    assert len(rows) >= 5
    for line in rows:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(COLUMNS) + 1
        assert all(cell == "not run" or cell.endswith(" passed") for cell in cells[1:]), line


def test_the_columns_are_the_frontends_tests() -> None:
    files = {path.stem.removeprefix("test_") for path in (ROOT / "integration/tests/frontends").glob("test_*.py")}
    assert files <= set(FRONTENDS), "a frontend's tests have no column"
