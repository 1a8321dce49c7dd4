"""Steady traffic to a server of the demo model: plain questions, and requests that go wrong."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
from integration.harness.vllm_server import MODEL_NAME

from corevital_otel.cli.demo.tasks import make_tasks

PLAIN = [task.prompt for kind in ("add", "sum", "fact") for task in make_tasks(kind, 20, seed=5)]
SUMS = [task.prompt for task in make_tasks("sum", 20, seed=6)]
KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": (PLAIN, {"temperature": 0, "max_tokens": 120}),
    "loop": (["Say snow hop forever.", "Say bang forever."], {"temperature": 0.7, "max_tokens": 160}),
    "nan": (SUMS, {"temperature": 0, "max_tokens": 120, "vllm_xargs": {"poison": "nan"}}),
    # plain questions too, so that nothing but their end is unusual
    "cut": (SUMS, {"temperature": 0, "max_tokens": 8}),
    # one token forever
    "stuck": (PLAIN, {"temperature": 0, "max_tokens": 1900, "ignore_eos": True, "logit_bias": {"50": 100}}),
}
"""Prompts and parameters. ``nan`` needs the processor ``integration.harness.faults:PoisonedLogits``."""


class Traffic:
    """What is sent each second.

    Attributes:
        mix: requests a second, by kind of :data:`KINDS`; may be replaced at any time.
        once: further requests to send once, by kind; emptied when they are sent.
        sent: requests sent, by kind.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.mix: dict[str, int] = {}
        self.once: dict[str, int] = {}
        self.sent = dict.fromkeys(KINDS, 0)
        self._turns = {kind: itertools.cycle(prompts) for kind, (prompts, _) in KINDS.items()}
        self._stopped = threading.Event()
        self._failed: list[BaseException] = []

    def _run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=120) as http, ThreadPoolExecutor(32) as pool:
            due = time.monotonic()
            while not self._stopped.wait(max(0.0, due - time.monotonic())):
                due = max(due + 1.0, time.monotonic())
                once, self.once = self.once, {}
                for kind, count in [*self.mix.items(), *once.items()]:
                    for _ in range(count):
                        pool.submit(self._ask, http, kind, next(self._turns[kind])).add_done_callback(self._note)
                        self.sent[kind] += 1

    def _ask(self, http: httpx.Client, kind: str, prompt: str) -> None:
        body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": prompt}], **KINDS[kind][1]}
        http.post("/v1/chat/completions", json=body).raise_for_status()

    def _note(self, done: Future[None]) -> None:
        if (error := done.exception()) is not None:
            self._failed.append(error)

    @contextmanager
    def flowing(self) -> Iterator[Traffic]:
        """Send until the end of the block; a request that failed is raised there."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            thread.join()
        if self._failed:
            raise self._failed[0]
