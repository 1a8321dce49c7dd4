"""The demo's traffic: chat and completion, streamed and not, greedy and sampled, some with ``n=2``."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from corevital_otel.demo.server import MODEL_NAME, post
from corevital_otel.demo.tasks import KINDS, Task, make_tasks

_AT_ONCE: Final = 8
_MAX_TOKENS: Final = {"sum": 120, "count": 120, "story": 160, "loop": 160}
_SHORT: Final = 12
"""Length limit that cuts a longer answer off, for every seventh request of the long kinds."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One task asked, and one sequence answered.

    Attributes:
        request_id: the id in the response.
        sequence: number of the choice.
    """

    task: Task
    request_id: str
    sequence: int
    text: str


def send(url: str, count: int, progress: Callable[[], None], seed: int = 1) -> list[Exchange]:
    """Send ``count`` requests, some at once; returns every answer in the order asked.

    Raises:
        ServerError: the server does not answer, or answers with an error.
    """
    rng = random.Random(seed)
    share = -(-count // len(KINDS))
    tasks = [task for kind in KINDS for task in make_tasks(kind, share, seed)]
    rng.shuffle(tasks)

    def ask(numbered: tuple[int, Task]) -> list[Exchange]:
        answers = _ask(url, *numbered)
        progress()
        return answers

    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        return [exchange for answers in pool.map(ask, enumerate(tasks[:count])) for exchange in answers]
    finally:  # after Ctrl-C nobody waits for answers
        pool.shutdown(wait=False, cancel_futures=True)


def _ask(url: str, number: int, task: Task) -> list[Exchange]:
    """Which shape a request has follows from its number, so that every kind of task meets every shape."""
    body: dict[str, Any] = {"model": MODEL_NAME, "max_tokens": _MAX_TOKENS.get(task.kind, 40), "seed": number}
    body["temperature"] = (0.0, 0.7, 1.0)[number % 3]
    if number % 7 == 0 and task.kind in _MAX_TOKENS:
        body["max_tokens"] = _SHORT
    if number % 10 == 0:
        body["n"] = 2
        body["temperature"] = 1.0
    if number % 4 == 3:
        return _completion(url, task, body)
    return _chat(url, task, body, stream=number % 4 == 1)


def _completion(url: str, task: Task, body: dict[str, Any]) -> list[Exchange]:
    answer = json.loads(post(f"{url}/v1/completions", {**body, "prompt": task.prompt + "\n"}))
    return [Exchange(task, answer["id"], choice["index"], choice["text"]) for choice in answer["choices"]]


def _chat(url: str, task: Task, body: dict[str, Any], *, stream: bool) -> list[Exchange]:
    body = {**body, "messages": [{"role": "user", "content": task.prompt}], "stream": stream}
    answer = post(f"{url}/v1/chat/completions", body)
    if not stream:
        whole = json.loads(answer)
        return [
            Exchange(task, whole["id"], choice["index"], choice["message"]["content"] or "")
            for choice in whole["choices"]
        ]
    texts: dict[int, str] = {}
    request_id = ""
    for line in answer.decode().splitlines():
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            request_id = chunk["id"]
            for choice in chunk["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return [Exchange(task, request_id, index, text) for index, text in sorted(texts.items())]
