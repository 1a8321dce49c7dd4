"""The check for a GPU, dry: it runs on a CPU with only its requirements, and fails where something is wrong."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from integration.gpu.table import BEGIN, END, Goal, Report, Row, is_failed, markdown, write_between

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = [
    "env", "warm", "exact", "big", "sync", "thread", "loop", "tests", "kernel", "logprobs", "host", "pinned", "memory",
    "step", "oom", "generate",
]  # fmt: skip

# What a machine with a GPU need not have is hidden from every process of the check.
HIDE = """
    import sys
    from importlib.machinery import PathFinder

    HIDDEN = {"vllm", "pydantic", "pydantic_settings", "opentelemetry", "zmq", "pytest_timeout", "fastapi", "typer"}

    class Hiding(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

    sys.meta_path = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "hiding"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(HIDE))
    paths = [str(folder), *(str(ROOT / part) for part in ("plugin", "otel", ""))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}


def call(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )


def rows_of(text: str) -> list[list[str]]:
    """The cells of a Markdown table, its header first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_section_runs_dry_with_only_its_requirements(environment: dict[str, str], tmp_path: Path) -> None:
    hidden = call(environment, "-c", "import pydantic")
    assert "ModuleNotFoundError" in hidden.stderr, "the stand-in for a bare machine hides nothing"
    out = tmp_path / "made" / "gpu.md"
    done = call(environment, "-m", "integration.gpu", "--dry", "--out", str(out))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    header, line, *rows = rows_of(out.read_text())
    assert header == ["section", "check", "figure", "goal", "verdict"]
    assert line == ["---"] * 5
    assert {len(row) for row in rows} == {5}
    assert list(dict.fromkeys(row[0] for row in rows)) == SECTIONS
    assert {row[4] for row in rows} == {"pass", "dry", "figure"}
    passed = {row[0] for row in rows if row[4] == "pass"}
    assert {"exact", "big", "loop", "tests", "oom", "generate"} <= passed, "judged on any machine"
    judged = [row for row in rows if row[0] in ("kernel", "sync") and row[3]]
    assert judged, "goals for a GPU are in the table"
    assert {row[4] for row in judged} == {"dry"}
    assert out.read_text().startswith("dry run, no GPU: ")


BROKEN = """
    import os, sys, time
    from integration.gpu.__main__ import main
    from integration.gpu.runner import Section

    def raises(place, report):
        report.check("before", True)
        raise ValueError("first line\\nthe last line")

    def dies(place, report):
        os._exit(7)

    def hangs(place, report):
        time.sleep(100)

    def swaps(place, report):
        from corevital.steps.recorder import Recorder
        from integration.gpu.behaviour import _loop
        from integration.gpu.engines import Batch

        record_tokens = Recorder.record_tokens
        Recorder.record_tokens = lambda self, observed, tokens: record_tokens(self, observed, tokens[::-1])
        _loop(place, report, "V1", "V1", Batch(2, 2), 4)

    more = {
        "swaps": Section(swaps, 60),
        "raises": Section(raises, 20),
        "dies": Section(dies, 20),
        "silent": Section(lambda place, report: None, 20),
        "hangs": Section(hangs, -115),  # what the others leave is its own, here at most 5 s
        "fine": Section(lambda place, report: report.check("works", True), 60),
    }
    sys.exit(main(["--dry", *more], more))
"""


def test_a_section_that_fails_is_a_row_and_the_others_continue(environment: dict[str, str]) -> None:
    done = call(environment, "-c", textwrap.dedent(BROKEN))
    assert done.returncode == 1, done.stderr
    rows = {(row[0], row[1]): (row[2], row[4]) for row in rows_of(done.stdout)}
    ((figure, verdict),) = (cells for (section, _), cells in rows.items() if section == "swaps")
    assert (figure.startswith("lost 0, extra 0, wrong 0, tokens "), verdict) == (True, "fail"), figure
    assert rows["raises", "before"] == ("yes", "pass")
    assert rows["raises", "finished"] == ("ValueError: the last line", "fail")
    assert rows["dies", "finished"] == ("the process ended with 7", "fail")
    assert rows["silent", "finished"] == ("the section reported nothing", "fail")
    assert rows["hangs", "finished"] == ("not finished: stopped at the end of its time", "fail")
    assert rows["fine", "works"] == ("yes", "pass")


def test_without_a_gpu_one_line_names_the_fix(environment: dict[str, str]) -> None:
    done = call(environment, "-m", "integration.gpu")
    assert done.returncode == 2
    assert "finds no GPU; use a Python whose does, or --dry" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_tests_that_the_check_runs_exist() -> None:
    source = (ROOT / "integration" / "gpu" / "machine_checks.py").read_text()
    files = re.findall(r'"((?:tests|integration)/[\w/]+\.py)"', source)
    assert len(files) >= 4
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_sections_share_eight_minutes() -> None:
    source = (ROOT / "integration" / "gpu" / "sections.py").read_text()
    shares = dict(re.findall(r'"(\w+)": Section\([\w.]+, (\d+)\)', source))
    assert list(shares) == SECTIONS
    assert sum(map(int, shares.values())) == 480


@pytest.mark.parametrize(
    ("goal", "met", "missed"),
    [
        (Goal("<=", 1.25), [1.25, 1.0], [1.2501, math.nan, math.inf]),
        (Goal("<", 60, " us"), [59.9], [60.0, math.nan]),
        (Goal(">=", 0.99), [0.99, 1.2], [0.9899, math.nan]),
        (Goal("=", 0), [0.0], [1.0, -1.0, math.nan]),
    ],
)
def test_a_figure_is_compared_with_its_goal(goal: Goal, met: list[float], missed: list[float]) -> None:
    rows: list[Row] = []
    for figure in met + missed:
        Report("kernel", rows.append).goal("ratio", figure, goal)
    assert [row.verdict for row in rows] == ["pass"] * len(met) + ["fail"] * len(missed)
    assert {row.goal for row in rows} == {str(goal)}
    assert is_failed(rows[:1]) is False
    assert is_failed(rows) is True


def test_what_a_machine_cannot_judge_neither_passes_nor_fails() -> None:
    rows: list[Row] = []
    report = Report("kernel", rows.append, judges=False)
    report.goal("ratio", 9.0, Goal("<=", 1.25), "90 us")
    report.figure("copy", "3 GB/s")
    report.not_run("driver", "no GPU")
    assert [row.verdict for row in rows] == ["dry", "figure", "dry"]
    assert rows[0].figure == "9, 90 us"
    assert is_failed(rows), "nothing was checked"
    report.check("right", True)
    assert not is_failed(rows)
    report.check("right", False)
    assert is_failed(rows)
    text = markdown(rows, "a machine", 3.2)
    assert "1 passed, 1 failed, 2 not judged on this machine, 1 figures; 3 s" in text


def test_a_cell_cannot_break_the_table() -> None:
    row = Row("tests", "a | b", "two\nlines", "", "pass")
    header, _, cells = rows_of(markdown([row], "a machine", 1))
    assert len(cells) == len(header)
    assert cells[1:3] == ["a \\| b", "two lines"]


def test_the_table_replaces_what_is_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for text in ("first\n", "second\n"):
        write_between(page, text)
        assert page.read_text() == f"before\n{BEGIN}\n\n{text}\n{END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has no place for the table"):
        write_between(page, "text")


def test_the_docs_have_a_place_for_the_table(tmp_path: Path) -> None:
    (page,) = (ROOT / "docs").rglob("performance.md")
    copy = tmp_path / "copy.md"
    copy.write_text(page.read_text())
    write_between(copy, "the table")
    assert "\nthe table\n" in copy.read_text()
