"""The demo's traffic: chat and completion, streamed and not, greedy and sampled, some with ``n=2``."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import httpx

from corevital_otel.cli.demo.server import MODEL_NAME, client, post
from corevital_otel.cli.demo.tasks import KINDS, Task, make_tasks

_AT_ONCE: Final = 8
_MAX_TOKENS: Final = {"sum": 120, "count": 120, "story": 160, "loop": 160}
_SHORT: Final = 12
"""Length limit that cuts a longer answer off, for every seventh request of the long kinds."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One task, and one sequence of its answer.

    Attributes:
        request_id: the id in the response.
        sequence: number of the choice.
    """

    task: Task
    request_id: str
    sequence: int
    text: str


def send(url: str, count: int, progress: Callable[[], None], seed: int = 1) -> list[Exchange]:
    """Send ``count`` requests, some at a time. Returns every answer, in the order of the requests.

    Raises:
        ServerError: the server does not answer, or answers with an error.
    """

    def ask(numbered: tuple[int, Task]) -> list[Exchange]:
        answers = _ask(server, *numbered)
        progress()
        return answers

    server = client(url)
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        return [exchange for answers in pool.map(ask, enumerate(tasks_of(count, seed))) for exchange in answers]
    finally:  # after Ctrl-C, do not wait for answers
        pool.shutdown(wait=False, cancel_futures=True)
        server.close()


def tasks_of(count: int, seed: int) -> list[Task]:
    """``count`` tasks of all kinds, mixed; the same ones for the same seed."""
    share = -(-count // len(KINDS))
    tasks = [task for kind in KINDS for task in make_tasks(kind, share, seed)]
    random.Random(seed).shuffle(tasks)  # noqa: S311 - seeded, for the same tasks each time
    return tasks[:count]


def shape(number: int, task: Task) -> dict[str, Any]:
    """``max_tokens``, ``temperature`` and ``n`` of a task's request: every kind of task is sent in every shape."""
    is_short = number % 7 == 0 and task.kind in _MAX_TOKENS
    two = number % 10 == 0
    return {
        "max_tokens": _SHORT if is_short else _MAX_TOKENS.get(task.kind, 40),
        "temperature": 1.0 if two else (0.0, 0.7, 1.0)[number % 3],
        "n": 2 if two else 1,
    }


def _ask(server: httpx.Client, number: int, task: Task) -> list[Exchange]:
    """Send one task, in the shape of its number."""
    body: dict[str, Any] = {"model": MODEL_NAME, "seed": number, **shape(number, task)}
    if number % 4 == 3:
        return _completion(server, task, body)
    return _chat(server, task, body, stream=number % 4 == 1)


def _completion(server: httpx.Client, task: Task, body: dict[str, Any]) -> list[Exchange]:
    answer = json.loads(post(server, "/v1/completions", {**body, "prompt": task.prompt + "\n"}))
    return [Exchange(task, answer["id"], choice["index"], choice["text"]) for choice in answer["choices"]]


def _chat(server: httpx.Client, task: Task, body: dict[str, Any], *, stream: bool) -> list[Exchange]:
    body = {**body, "messages": [{"role": "user", "content": task.prompt}], "stream": stream}
    answer = post(server, "/v1/chat/completions", body)
    if not stream:
        whole = json.loads(answer)
        return [
            Exchange(task, whole["id"], choice["index"], choice["message"]["content"] or "")
            for choice in whole["choices"]
        ]
    texts: dict[int, str] = {}
    request_id = ""
    for line in answer.split("\n"):
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            request_id = chunk["id"]
            for choice in chunk["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return [Exchange(task, request_id, index, text) for index, text in sorted(texts.items())]
