"""What is asked of an engine's process, and what it answers."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple


class Job(NamedTuple):
    """Requests to generate.

    Attributes:
        prompts: one a request.
        params: its sampling parameters.
        how: ``alone``: one after the other. ``held``: all are queued before the first step, so that each step has the
            same requests every time. ``free``: as vLLM does it.
    """

    prompts: list[Any]
    params: list[dict[str, Any]]
    how: Literal["alone", "held", "free"]


class Answer(NamedTuple):
    """The result of a job.

    Attributes:
        tokens: of each request.
        logprobs: where they were asked for, for each of its tokens its own and the 20 highest, highest first; nats.
        seconds: that it took.
        counters: the engine's own, by name, as far as it keeps them.
    """

    tokens: list[list[int]]
    logprobs: list[list[tuple[float, list[float]]]]
    seconds: float
    counters: dict[str, float]
