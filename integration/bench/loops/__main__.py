"""What is called a loop, on texts whose label is known, as SmolLM2 reads them.

    python -m integration.bench.loops [--list] [--table FILE]

Each text is judged as a whole request, through the assembler: a legitimate one ends by itself, and once more is judged
by its tokens alone; a loop is cut off by its limit. With ``--table`` the token ids are written too, for tests that have
no tokenizer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from integration.bench.loops import texts
from integration.bench.loops.tokens import encoder

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel.counters import Counters
from corevital_otel.measure.assembler import Assembler
from corevital_otel.measure.loops import find
from corevital_otel.report import Health, RequestReport
from corevital_otel.risk import PriorRisk

LIMIT = 512
"""Tokens of an answer at most; one with a long period has four copies."""
ADMITTED = Admitted(
    request_id="r", engine_id="r", sequence=0, operation="chat", model="m", arrival_ns=0, prompt_tokens=8
)


def judged(tokens: Sequence[int], reason: str) -> Health:
    """The flags of an answer with these tokens."""
    reports: list[RequestReport] = []
    assembler = Assembler(reports.append, Counters(), risk=PriorRisk(0.7))
    assembler.admit(1, ADMITTED)
    assembler.finish(1, Finished(reason=reason, token_ids=tokens, end_ns=0))
    assembler.close(0.0)
    return reports[0].health


def cut(opening: list[int], part: list[int]) -> list[int]:
    """An answer that repeats a part until its limit."""
    length = max(LIMIT, len(opening) + 4 * len(part))
    return (opening + part * (length // len(part) + 1))[:length]


class Table(TypedDict):
    """The token ids of all texts, by their names; of exact loops those of the beginning and of the repeated part."""

    legitimate: dict[str, list[int]]
    near: dict[str, list[int]]
    exact: list[tuple[list[int], list[int]]]
    long: list[tuple[list[int], list[int]]]


def table(encode: Callable[[str], list[int]]) -> Table:
    """The token ids of all texts."""
    return Table(
        legitimate={name: encode(text)[:LIMIT] for name, text in texts.legitimate().items()},
        near={name: encode(text)[:LIMIT] for name, text in texts.near_loops().items()},
        exact=[(encode(opening), encode(part)) for opening, part in texts.exact_loops()],
        long=[(encode(opening), encode(part)) for opening, part in texts.long_loops()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What is called a loop, on texts whose label is known.")
    parser.add_argument("--list", action="store_true", help="show each text that is judged wrongly")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the token ids, as JSON")
    options = parser.parse_args()
    encode = encoder()
    ids = table(encode)
    if options.table:
        options.table.write_text(json.dumps(ids, separators=(",", ":")) + "\n")
    show(ids, options.list)


def show(ids: Table, listed: bool) -> None:
    """Print the shares, and each text that is judged wrongly."""
    legitimate, near = ids["legitimate"], ids["near"]
    called = [name for name, tokens in legitimate.items() if judged(tokens, "stop").repetition_loop_detected]
    alone = [name for name, tokens in legitimate.items() if (one := find(np.array(tokens, np.int32))) and one.loop]
    missed = [name for name, tokens in near.items() if not judged(tokens, "length").repetition_loop_detected]
    print("| texts | count | called a loop | onset within 8 tokens |\n| --- | --- | --- | --- |")
    print(f"| legitimate, ended by themselves | {len(legitimate)} | {len(called)} | |")
    print(f"| the same, by their tokens alone | {len(legitimate)} | {len(alone)} | |")
    for name, pairs in (("exact loops", ids["exact"]), ("exact loops of a long period", ids["long"])):
        found = [(len(opening), judged(cut(opening, part), "length")) for opening, part in pairs]
        close = sum(one.loop_onset is not None and abs(one.loop_onset - onset) <= 8 for onset, one in found)
        print(f"| {name} | {len(found)} | {sum(one.repetition_loop_detected for _, one in found)} | {close} |")
    print(f"| near loops | {len(near)} | {len(near) - len(missed)} | |")
    if listed:
        print(f"\ncalled a loop: {', '.join(called) or 'none'}\nby tokens alone: {', '.join(alone) or 'none'}")
        print(f"near loops missed: {', '.join(missed) or 'none'}")


if __name__ == "__main__":
    main()
