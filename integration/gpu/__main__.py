"""The command: see :mod:`integration.gpu`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.gpu.runner import Section

DOCS = Path(__file__).parents[2] / "docs"


def main(arguments: Sequence[str], more: Mapping[str, Section] | None = None) -> int:
    """Run the sections asked for; 0 if nothing failed.

    Args:
        arguments: of the command.
        more: sections besides those of :mod:`integration.gpu.sections`.
    """
    parser = argparse.ArgumentParser(prog="python -m integration.gpu", description="Check corevital on a GPU.")
    parser.add_argument("sections", nargs="*", metavar="section", help="which ones; all by default")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there, in Markdown")
    parser.add_argument("--docs", action="store_true", help="write it into docs/develop/performance.md")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes; goals for a GPU are not judged")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    os.environ["COREVITAL_RAISE"] = "1"  # an error in corevital fails its section
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # so that "warm" compiles, and the others find what it has compiled
        from integration.gpu import place, runner, table
        from integration.gpu.sections import SECTIONS

        known = {**SECTIONS, **(more or {})}
        if unknown := [name for name in options.sections if name not in known]:
            parser.error(f"unknown section {', '.join(unknown)}; known: {', '.join(known)}")
        if options.docs and options.dry:
            parser.error("a dry run measures nothing for docs/develop/performance.md: leave out --docs or --dry")
        if options.dry and not place.is_interpreter_right():
            print(f"a dry run needs the interpreter of Triton {place.RIGHT_INTERPRETER} or newer", file=sys.stderr)
            return 2
        if not options.dry and not runner.has_gpu():
            print(f"{sys.executable}: its PyTorch finds no GPU; use a Python whose does, or --dry", file=sys.stderr)
            return 2
        machine = runner.describe(options.dry)
        print(machine, flush=True)
        asked = {name: known[name] for name in options.sections or known}
        rows = runner.run(asked, options.dry, lambda line: print(line, flush=True))
    seconds = time.monotonic() - started
    text = table.markdown(rows, machine, seconds)
    print(f"\n{text}", flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    if options.docs:
        table.write_between(next(DOCS.rglob("performance.md")), text)
    return int(table.is_failed(rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
