"""The recipe of the bill of materials names what the wheel really has. `make sbom` itself needs the package index."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPE = (ROOT / "integration/harness/sbom.py").read_text()


def constant(source: str, name: str) -> dict[str, object]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == name:
                found: dict[str, object] = ast.literal_eval(node.value)
                return found
    raise AssertionError(f"no {name}")


def test_each_script_in_the_wheel_has_its_licence_in_the_bill() -> None:
    fetched = {package.rpartition("@")[0] for package in constant((ROOT / "hatch_build.py").read_text(), "PACKAGES")}
    assert fetched == set(constant(RECIPE, "LICENCES"))


def test_the_tools_are_pinned_and_the_audit_fails_on_what_it_cannot_check() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^SBOM_TOOLS := cyclonedx-bom==[\d.]+ pip-audit==[\d.]+$", makefile, re.MULTILINE)
    assert "pip-audit --strict" in makefile, "without it, a package that no service knows is skipped with exit status 0"
