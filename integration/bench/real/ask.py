"""Asks the questions of a running server and keeps each answer, one JSON object a line.

A key names each question at a temperature. What is in the file already is not asked again, so that an interrupted
run continues.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from integration.bench.real.long_prompts import LONG
from integration.bench.real.model import NAME
from integration.bench.real.tasks import SEED, questions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

TEMPERATURES: Final = {"long": (0.0, 0.7, 1.0), "chat": (0.0, 0.7), "fewshot": (0.0, 0.7)}
LONG_TOKENS: Final = 512
_CONCURRENT: Final = 32
_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked once: a question at a temperature. ``check`` and ``gold`` are empty for a long answer."""

    key: str
    form: str
    kind: str
    prompt: str
    temperature: float
    max_tokens: int
    check: str = ""
    gold: str = ""

    @property
    def seed(self) -> int:
        """Of the sampling; the same in every run."""
        return zlib.crc32(self.key.encode())

    def body(self) -> tuple[str, dict[str, Any]]:
        """The request's path and body."""
        body = {"model": NAME, "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        if self.form == "fewshot":
            return "/v1/completions", {**body, "prompt": self.prompt, "stop": ["\n"]}
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": self.prompt}]}


def jobs() -> list[Job]:
    """All of them, in an order that mixes kinds, forms and temperatures."""
    found = [
        Job(f"long-{kind}-{i}-{t}", "long", kind, prompt, t, LONG_TOKENS)
        for t in TEMPERATURES["long"]
        for kind, prompts in LONG.items()
        for i, prompt in enumerate(prompts)
    ]
    found += [
        Job(f"{q.form}-{q.kind}-{i}-{t}", q.form, q.kind, q.prompt, t, q.max_tokens, q.check, q.gold)
        for i, q in enumerate(questions())
        for t in TEMPERATURES[q.form]
    ]
    random.Random(SEED).shuffle(found)
    return found


def answers(path: Path) -> dict[str, dict[str, Any]]:
    """The answers in a file, by their keys. A last line that was cut off is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        found[one["key"]] = one
    return found


async def _one(http: httpx.AsyncClient, job: Job) -> dict[str, Any]:
    path, body = job.body()
    answer = (await http.post(path, json=body)).raise_for_status().json()
    (choice,) = answer["choices"]
    text = choice["text"] if job.form == "fewshot" else choice["message"]["content"]
    said = {"id": answer["id"], "text": text, "finish": choice["finish_reason"], "at": time.time()}
    return {**asdict(job), **said}


async def ask(url: str, wanted: Sequence[Job], path: Path, seconds: float, progress: Progress) -> None:
    """Ask until all is asked or the time is over; what runs then is waited for."""
    deadline = time.monotonic() + seconds
    waiting: Iterable[Job] = iter(wanted)
    shown = progress.add_task("asking", total=len(wanted))
    before = path.read_text() if path.exists() else ""
    with path.open("a") as file:
        if before and not before.endswith("\n"):  # the last line was cut off
            file.write("\n")

        async def worker(http: httpx.AsyncClient) -> None:
            for job in waiting:
                if time.monotonic() > deadline:
                    return
                file.write(json.dumps(await _one(http, job)) + "\n")
                file.flush()
                progress.advance(shown)

        async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as http:
            await asyncio.gather(*(worker(http) for _ in range(_CONCURRENT)))


def bar() -> Progress:
    """Progress on stderr: what is printed is the report alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
