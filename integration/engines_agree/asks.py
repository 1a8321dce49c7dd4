"""What each engine is asked, and what it answered: its tokens, and the series that corevital put into the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from integration.harness.reference import tokenizer

from corevital_otel.cli.demo.tasks import KINDS, make_tasks
from corevital_otel.report import Series
from corevital_otel.store.reader import StoreReader

PENALTIES: Final = (1.0, 1.3)
"""Repetition penalties: without one all stages are the same logits; with one, those before and after it differ."""

STORE: Final = "corevital.db"


class Ask(NamedTuple):
    """A greedy request.

    Attributes:
        prompt: the text.
        ids: its tokens.
        penalty: repetition penalty, over prompt and output; 1 is none.
        max_tokens: of the answer.
    """

    prompt: str
    ids: list[int]
    penalty: float
    max_tokens: int


class Answer(NamedTuple):
    """What came back.

    Attributes:
        penalty: of the request.
        tokens: as the engine returned them.
        series: of the store; None where there is none.
        stage: of the logits.
        version: of the engine.
    """

    penalty: float
    tokens: list[int]
    series: Series | None
    stage: str
    version: str


def settings(folder: Path) -> dict[str, str]:
    """The environment variables that make corevital keep everything in this folder's store."""
    return {"COREVITAL_DB": str(folder / STORE), "COREVITAL_CAPTURE": "full"}


def asks(each: int, max_tokens: int) -> list[Ask]:
    """``each`` prompts of every kind of the demo's tasks, without and with a penalty."""
    prompts = [task.prompt + "\n" for kind in KINDS for task in make_tasks(kind, each, seed=16)]
    return [
        Ask(prompt, tokenizer()(prompt)["input_ids"], penalty, max_tokens)
        for penalty in PENALTIES
        for prompt in prompts
    ]


def answers(store: Path, asked: Sequence[Ask], tokens: Sequence[list[int]]) -> list[Answer]:
    """Join tokens with the store's rows. Requests went one at a time, so rows are in their order.

    Raises:
        RuntimeError: there is not one row for each.
    """
    reader = StoreReader(store)
    rows = reader.list_reports(limit=10 * len(asked))[::-1]
    if not len(rows) == len(tokens) == len(asked):
        raise RuntimeError(f"{len(asked)} requests, {len(tokens)} answers and {len(rows)} rows in {store}")
    return [
        Answer(
            ask.penalty,
            own,
            reader.get_whole(row.request_id)[0].series,
            row.summary["corevital.logits.stage"],
            row.summary["corevital.engine.version"],
        )
        for ask, own, row in zip(asked, tokens, rows, strict=True)
    ]


def are_same_logits(one: Answer, other: Answer) -> bool:
    """Whether the two stages are the same logits under this request.

    ``pre_grammar`` is after penalties, as ``post_penalty`` is, and yet not the same with a repetition penalty: SGLang,
    which has this stage, counts the output's tokens and not the prompt's.
    """
    return one.penalty == 1 or one.stage == other.stage
