"""What users of a server do, for Locust, which needs nothing else of this repository.

``LOAD_MODEL`` names the model, and ``LOAD_OUT`` a file that takes one line of JSON for each request:

    id, kind, sequences   as the client sees the request
    first_s               from the request to its first piece of text, where it is streamed
    gaps_s                between two pieces
    tokens                of its answers, where the server reports them
    error                 empty, or what went wrong
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

from locust import HttpUser, between, task

MODEL = os.environ.get("LOAD_MODEL", "tiny")
OUT = os.environ.get("LOAD_OUT", "load.jsonl")

_users = itertools.count()


class Reader(HttpUser):
    """Somebody who asks, reads the answer, and asks again."""

    wait_time = between(0.0, 0.2)

    def on_start(self) -> None:
        self.rng = random.Random(next(_users))  # the same questions in each round

    @task(3)
    def chat(self) -> None:
        self.ask("chat")

    @task(3)
    def completion(self) -> None:
        self.ask("completion")

    @task(8)
    def chat_streamed(self) -> None:
        self.ask("chat", stream=True)

    @task(4)
    def completion_streamed(self) -> None:
        self.ask("completion", stream=True)

    @task(2)
    def two_answers(self) -> None:
        self.ask("chat", sequences=2)

    @task(2)
    def hang_up(self) -> None:
        self.ask("chat", stream=True, pieces=3)

    def ask(self, kind: str, *, stream: bool = False, sequences: int = 1, pieces: int | None = None) -> None:
        """Ask one question.

        Args:
            kind: ``chat`` or ``completion``.
            stream: read the answer as it comes.
            sequences: how many answers.
            pieces: hang up after so many; None: read all.
        """
        question = f"What is {self.rng.randint(1, 99)} + {self.rng.randint(1, 99)}?"
        body: dict[str, Any] = {
            "model": MODEL, "max_tokens": self.rng.choice((8, 32, 64)),
            "temperature": self.rng.choice((0.0, 0.8)) if sequences == 1 else 0.8,
            "seed": self.rng.randint(1, 10_000), "n": sequences, "stream": stream, "ignore_eos": True,
        }  # fmt: skip
        path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
        body |= {"messages": [{"role": "user", "content": question}]} if kind == "chat" else {"prompt": question + "\n"}
        if stream:
            body["stream_options"] = {"include_usage": True}
        if pieces is not None:
            body["max_tokens"] = 400
        name = f"{kind}{', streamed' * stream}{', n=2' * (sequences > 1)}{', hung up' * (pieces is not None)}"
        found: dict[str, Any] = {"id": "", "kind": name, "sequences": sequences, "gaps_s": [], "tokens": 0, "error": ""}
        headers = {"X-Request-Id": uuid.uuid4().hex}
        begun = time.perf_counter()
        with self.client.post(
            path, json=body, headers=headers, stream=stream, name=name, catch_response=True, timeout=120
        ) as reply:
            try:
                reply.raise_for_status()
                if stream:
                    self.read(reply.iter_lines(chunk_size=1), found, begun, pieces)
                else:
                    _note(found, reply.json())
                reply.success()
            except Exception as error:
                found["error"] = f"{type(error).__name__}: {error}"
                reply.failure(found["error"])
        with open(OUT, "a") as file:
            file.write(json.dumps(found) + "\n")

    def read(self, lines: Iterator[bytes], found: dict[str, Any], begun: float, pieces: int | None) -> None:
        """Read a stream, to its end or for some pieces."""
        before: float | None = None
        count = 0
        for line in lines:
            if line == b"data: [DONE]":
                return
            if not line.startswith(b"data: "):
                continue
            data = json.loads(line[6:])
            _note(found, data)
            if not any(choice.get("text") or choice.get("delta", {}).get("content") for choice in data["choices"]):
                continue
            now = time.perf_counter()
            if before is None:
                found["first_s"] = now - begun
                self.environment.events.request.fire(
                    request_type="", name="first token", response_time=(now - begun) * 1e3, response_length=0,
                    exception=None, context={},
                )  # fmt: skip
            else:
                found["gaps_s"].append(now - before)
            before = now
            count += 1
            if count == pieces:
                return
        raise ValueError("the stream ended without [DONE]")


def _note(found: dict[str, Any], data: dict[str, Any]) -> None:
    if "error" in data:
        raise ValueError(str(data["error"]))
    found["id"] = data["id"]
    found["tokens"] = (data.get("usage") or {}).get("completion_tokens", found["tokens"])
