"""One truth: the same weights and prompts give the same numbers in each engine.

    python -m integration.engines_agree [--each N] [--tokens N] [--only NAME ...]

Float32, greedy, one request at a time; the per-token entropy, surprisal (bits) and margin are read from the stores.
Prints Markdown: the largest absolute difference of each pair of engines whose stages are the same logits. Exit 1 where
one is over the tolerance, or tokens differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

from integration.engines_agree.asks import STORE, answers, asks
from integration.engines_agree.compare import TOLERANCE, pairs, table
from integration.engines_agree.runners import ENGINES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=1, help="prompts of each kind of task")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of an answer at most")
    parser.add_argument("--only", nargs="+", choices=[engine.name for engine in ENGINES], help="these engines")
    options = parser.parse_args()
    asked, found, missing, failed = asks(options.each, options.tokens), {}, {}, False
    for engine in ENGINES:
        if options.only and engine.name not in options.only:
            continue
        if why := engine.missing():
            missing[engine.name] = why
            print(f"{engine.name}: not run: {why}", file=sys.stderr, flush=True)
            continue
        print(f"{engine.name}: {len(asked)} requests", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                tokens = engine.run(Path(folder), asked)
                found[engine.name] = answers(Path(folder) / STORE, asked, tokens)
            except Exception:  # the other engines can still be compared
                traceback.print_exc()
                missing[engine.name] = "**it failed**"
                failed = True
    print("\n".join(table(found, missing)))
    print(f"\nTolerance: {TOLERANCE:g} bits, or probability.")
    sys.exit(failed or not all(pair.agrees for pair in pairs(found)))


if __name__ == "__main__":
    main()
