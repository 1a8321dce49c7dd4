"""The events of a request's life: what an engine core sends a hub, and the hub's answers. JSON, and tokens as bytes.

A core's message is ``CVE1`` and a JSON object (:func:`encode`), then all its token ids, 4 bytes each. The hub validates
it when it reads it. An answer (:func:`answer`) has the id of the hub's run, so that a core notices a new hub and sends
it what the old one had not reported; the keys of sequences that are reported, which the core may forget; and orders to
end sequences that the core has asked it to watch.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Final, Literal, NamedTuple

MAGIC: Final = b"CVE1"
VERSION: Final = 1

Kind = Literal["admit", "finish", "facts", "internal", "unobserved", "lost", "span", "lost spans", "watch"]


class Event(NamedTuple):
    """One thing that happened in an engine core.

    Attributes:
        kind: ``admit`` (with an ``Admitted``), ``finish`` (a ``Finished``), ``facts`` (a ``CoreFacts``); ``internal``
            (the kind's name), ``unobserved`` and ``lost`` (sequences, a number), ``span`` (an API server's span of a
            request over HTTP, a dataclass of the telemetry half) and ``lost spans`` (a number), which have no key. Or
            ``watch`` (with None): order the sequence's end once its alarm is raised.
        key: the sequence's; 0 where the event has none.
        about: what the kind needs; see there.
    """

    kind: Kind
    key: int
    about: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreInfo:
    """The engine core, or the API server, that sends a message.

    Attributes:
        engine: its random id.
        tokenizer: name or directory of the model's tokenizer; empty: unknown.
        revision: of the tokenizer.
        shows_metrics: it shows the hub's metrics: answers have them as a second part, once a second at most.
    """

    engine: str
    tokenizer: str = ""
    revision: str | None = None
    shows_metrics: bool = False


def encode(core: CoreInfo, events: Iterable[Event]) -> list[bytes]:
    """Events as the parts of a message. Strings that are not UTF-8 are escaped."""
    tokens = array("i")
    encoded = []
    for kind, key, about in events:
        if kind == "finish":
            own = array("i", about.token_ids)
            tokens += own
            encoded.append([kind, key, {**_plain(about), "token_ids": len(own)}])
        else:
            encoded.append([kind, key, about])
    body = {"v": VERSION, "core": core, "events": encoded}
    return [MAGIC + json.dumps(body, default=_plain, separators=(",", ":")).encode(), tokens.tobytes()]


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as a JSON object, without fields that have their default."""
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} cannot be sent in an event")
    found = {}
    for field in fields(value):
        item = getattr(value, field.name)
        if field.default is MISSING or item != field.default:
            found[field.name] = item
    return found


class Answer(NamedTuple):
    """A hub's answer.

    Attributes:
        run: the id of its run.
        reported: keys of sequences that need not be sent again.
        ends: keys of sequences that are to end: their alarm is raised.
    """

    run: str
    reported: list[int]
    ends: list[int]


def answer(run: str, reported: Sequence[int], ends: Sequence[int] = ()) -> bytes:
    """See :class:`Answer`."""
    body = {"v": VERSION, "run": run, "reported": list(reported)} | ({"ends": list(ends)} if ends else {})
    return MAGIC + json.dumps(body).encode()


def read_answer(body: bytes) -> Answer | None:
    """What a hub answers; None if this is not an answer of this version."""
    found = read_object(body)
    if found is None or found.get("v") != VERSION:
        return None
    run, keys, ends = found.get("run"), found.get("reported"), found.get("ends", [])
    if not isinstance(run, str) or not isinstance(keys, list) or not isinstance(ends, list):
        return None
    return Answer(run, keys, ends) if all(type(key) is int for key in (*keys, *ends)) else None


def read_object(body: bytes) -> Mapping[str, Any] | None:
    """The JSON object of a message; None if there is none."""
    try:
        found = json.loads(body.removeprefix(MAGIC))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
