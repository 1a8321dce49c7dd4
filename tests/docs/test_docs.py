"""The docs: pages generated from code are up to date, and the site builds with every link, picture and anchor."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS_PYTHON = ROOT / ".venv-docs/bin/python"
SOURCES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs", "dashboards/runbooks", "integration")

with_zensical = pytest.mark.skipif(not DOCS_PYTHON.exists(), reason="no .venv-docs: `make docs` makes it")


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_reference_pages_are_up_to_date() -> None:
    done = run(sys.executable, "-m", "integration.docs", "--check")
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_troubleshooting_quotes_messages_that_the_code_has() -> None:
    page = (ROOT / "docs/operate/troubleshooting.md").read_text()
    cells = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    quoted = [text for cell in cells for text in re.findall(r"`([^`]+ [^`]+)`", cell)]
    assert len(quoted) > 20
    texts = [
        node.value
        for half in ("plugin", "otel")
        for file in (ROOT / half).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [text for text in quoted if not any(text in found for found in texts)] == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the site's sources, for a test to change."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def site(root: Path) -> subprocess.CompletedProcess[str]:
    return run(str(DOCS_PYTHON), "-m", "integration.docs.site", cwd=root)


@with_zensical
def test_the_site_builds_and_loads_nothing_from_other_hosts(copy: Path) -> None:
    done = site(copy)
    assert done.returncode == 0, done.stderr
    pages = list(copy.glob("site/**/*.html"))
    assert len(pages) > 40
    loaded = r"<(?:script|img|link rel=\"stylesheet\")[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*"
    assert [found for page in pages for found in re.findall(loaded, page.read_text())] == []


@with_zensical
@pytest.mark.parametrize(
    ("link", "named"),
    [
        ("[page](no-such-page.md)", "no-such-page.md"),
        ("[anchor](spans.md#no-such-section)", "anchor does not exist"),
        ("![picture](no-such-picture.png)", "no-such-picture.png"),
    ],
)
def test_a_broken_link_fails_the_build(copy: Path, link: str, named: str) -> None:
    page = copy / "docs/understand/risk.md"
    page.write_text(f"{page.read_text()}\n{link}\n")
    done = site(copy)
    assert done.returncode == 1
    assert "risk.md" in done.stderr
    assert named in done.stderr
    assert not (copy / "site").exists()


@with_zensical
def test_a_page_outside_the_navigation_fails_the_build(copy: Path) -> None:
    (copy / "docs/start/unlisted.md").write_text("# Unlisted\n")
    done = site(copy)
    assert done.returncode == 1
    assert "docs/start/unlisted.md is not in `nav`" in done.stderr
