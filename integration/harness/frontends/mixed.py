"""A hundred mixed requests, the same for every frontend, and what a client got for each.

A frontend that has no place for a kind of request (``n``, the ``corevital_*`` arguments, an abort) gets a plain one
instead, so that it is always a hundred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from corevital_otel.cli.demo.tasks import make_tasks

COUNT = 100
_QUESTIONS = [task.prompt for kind in ("add", "sum", "sort", "fact", "count") for task in make_tasks(kind, 20, seed=15)]
_STORIES = [task.prompt for task in make_tasks("story", 12, seed=15)]
_KINDS = (
    "stop",
    "included",
    "short",
    "minimum",
    "choices",
    "hangup",
    "gone",
    "wrong",
    "unsampled",
    "full",
    "seeded",
    "greedy",
)
_ENDLESS = {"temperature": 0.0, "max_tokens": 1900, "ignore_eos": True}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request.

    Attributes:
        name: the id that its client chooses.
        chat: a chat, else a completion.
        prompt: the message; a completion's prompt is the same and a line feed, which makes the same tokens.
        params: sampling parameters by OpenAI's names.
        stream: whether its answer is streamed.
        chunks: hang up after so many chunks of the stream.
        leave_s: hang up after so many seconds without an answer; over HTTP, once the engine is at it.
        arguments: its ``corevital_*`` arguments.
        wrong: whether one of those is not allowed.
    """

    name: str
    chat: bool
    prompt: str
    params: dict[str, Any]
    stream: bool = False
    chunks: int | None = None
    leave_s: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    wrong: bool = False

    @property
    def sequences(self) -> int:
        """Sequences that corevital must report if the request is accepted."""
        return 0 if self.arguments.get("corevital_sample") == 0 else int(self.params.get("n", 1))

    @property
    def stops_at_text(self) -> bool:
        """Whether it has stop strings."""
        return "stop" in self.params

    @property
    def hangs_up(self) -> bool:
        """Whether its client does not wait for the end."""
        return self.chunks is not None or self.leave_s is not None


@dataclass
class Answer:
    """What the client of a request saw; texts and finish reasons by choice.

    Attributes:
        name: the request's.
        request_id: the id in the answer; empty where none came.
        output_tokens: of all choices, None where the answer does not say.
        refused: the message of the refusal, if it was refused.
    """

    name: str
    request_id: str = ""
    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    output_tokens: int | None = None
    refused: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Answer:
        by_choice = {
            name: {int(key): value for key, value in data[name].items()} for name in ("texts", "finish_reasons")
        }
        return Answer(**{**data, **by_choice})


def mixed(*, choices: bool = True, arguments: bool = True, aborts: bool = True, streams: bool = True) -> list[Request]:
    """The requests.

    Args:
        choices: whether the frontend has ``n``.
        arguments: whether it passes on ``vllm_xargs``.
        aborts: whether a client can hang up.
        streams: whether it streams.
    """
    made: list[Request] = []

    def add(count: int, kind: str, params: dict[str, Any], prompts: list[str] = _QUESTIONS, **more: Any) -> None:
        """Add requests of a kind; what each is depends on its kind and number alone, so a name means one request."""
        first = _KINDS.index(kind) * 100
        for number in range(count):
            request = Request(
                name=f"{kind}-{number}",
                chat=number % 2 == 0,
                prompt=prompts[(first + number) % len(prompts)],
                params={**params, **({"seed": first + number} if params["temperature"] else {})},
                stream=streams and number % 4 in (1, 2),
            )
            made.append(replace(request, **more))

    greedy, seeded = {"temperature": 0.0, "max_tokens": 24}, {"temperature": 0.8, "max_tokens": 24}
    story = {"temperature": 0.0, "max_tokens": 48}
    add(6, "stop", {**story, "stop": ["the", " a "]}, _STORIES)
    add(4, "included", {**story, "stop": ["the"], "include_stop_str_in_output": True}, _STORIES)
    add(8, "short", {**greedy, "max_tokens": 3})
    add(4, "minimum", {**greedy, "min_tokens": 12})
    if choices:
        add(6, "choices", {**seeded, "n": 2})
    if aborts:
        add(6, "hangup", _ENDLESS, _STORIES, stream=True, chunks=4)
        add(2, "gone", _ENDLESS, _STORIES, stream=False, leave_s=2.0)
    if arguments:
        add(4, "wrong", greedy, arguments={"corevital_capture": "sometimes"}, wrong=True)
        add(4, "unsampled", greedy, arguments={"corevital_sample": 0})
        add(4, "full", greedy, arguments={"corevital_capture": "full", "corevital_tags": "a, b"})
    add(22, "seeded", seeded)
    add(COUNT - len(made), "greedy", greedy)
    return made


def expected(requests: Iterable[Request], answers: Iterable[Answer]) -> Counter[str]:
    """How many sequences corevital must report under each id, by what the client sent and saw."""
    by_name = {request.name: request for request in requests}
    counts: Counter[str] = Counter()
    for answer in answers:
        if answer.refused is None:
            counts[answer.request_id] += by_name[answer.name].sequences
    return +counts
