"""``make docs``: the pages of this repository as a site. Runs in an environment with zensical and without corevital.

The pages are copied to ``build/docs/pages`` in the folders they have here, so the same links work here and in the site.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs", "dashboards/runbooks",
    "integration/demo_model/README.md", "integration/bench/risk/README.md",
)  # fmt: skip
"""Files and folders that are in the site."""
CONFIGURATION = "docs/zensical.toml"


def build(root: Path = ROOT) -> list[str]:
    """Build ``root``'s site into ``root/site``, strictly.

    Returns:
        The problems, one line each. With a problem there is no new site.
    """
    work = root / "build/docs"
    shutil.rmtree(work, ignore_errors=True)
    for name in PAGES:
        target = work / "pages" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (root / name).is_dir():
            shutil.copytree(root / name, target, ignore=shutil.ignore_patterns("*.toml"))
        else:
            shutil.copy(root / name, target)
    shutil.copy(root / CONFIGURATION, work / "zensical.toml")
    if problems := [*unlisted(work), *absent(work / "pages")]:
        return problems
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(work / "zensical.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).partition("Traceback")[0].strip()]
    shutil.rmtree(root / "site", ignore_errors=True)
    shutil.move(work / "site", root / "site")
    return []


def unlisted(work: Path) -> list[str]:
    """Pages missing from the navigation, and entries without a page: zensical ignores both."""
    named = set(entries(tomllib.loads((work / "zensical.toml").read_text())["project"]["nav"]))
    there = {str(file.relative_to(work / "pages")) for file in work.glob("pages/**/*.md")}
    return [f"{CONFIGURATION}: {name} is not in `nav`: add it" for name in sorted(there - named)] + [
        f"{CONFIGURATION}: `nav` names {name}, which does not exist" for name in sorted(named - there)
    ]


def entries(nav: list[Any]) -> Iterator[str]:
    """The pages named in a navigation."""
    for entry in nav:
        if isinstance(entry, dict):
            for value in entry.values():
                yield from entries(value if isinstance(value, list) else [value])
        else:
            yield entry


def absent(pages: Path) -> list[str]:
    """Missing pictures and files that a page links to: zensical checks links to pages only."""
    problems = []
    for page in sorted(pages.rglob("*.md")):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            if "://" not in target and not (page.parent / target).is_file():
                problems.append(f"{page.relative_to(pages)}: {target} is not in the site: fix the link")
    return problems


if __name__ == "__main__":
    found = build()
    sys.stderr.writelines(f"{line}\n" for line in found)
    sys.exit(bool(found))
