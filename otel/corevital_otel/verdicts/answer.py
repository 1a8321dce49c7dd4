"""An answer with the verdict on it. All else stays byte for byte what the engine sent.

A whole answer, a JSON object, gets the key ``corevital``, a header with its level, and one with its flags where there
are any. A stream gets one more event: of chat and completions, ``data: {…, "choices": [], "corevital": […]}`` before
the event with the usage, or before ``[DONE]`` where there is none; of responses, an event ``keepalive`` at the end:
OpenAI's Node client fails at types that it does not know, and takes this one as it comes. A client that reads usage
reads its event last, and takes it from no other.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from corevital.guard import swallow
from corevital.log import warn_once
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.verdicts.collector import Collector
from corevital_otel.verdicts.wording import as_json, raised, worst

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

LONGEST_WAIT_S: Final = 2.0
"""How long an answer waits for its verdict."""
HEADER: Final = b"x-corevital-risk-level"
FLAGS_HEADER: Final = b"x-corevital-flags"
KEY: Final = "corevital"
EVENT: Final = "keepalive"

_COPIED: Final = ("id", "object", "created", "model")
"""What the event has of the stream's first one, as every event of its kind."""
_DATA: Final = b"data: {"
_DONE: Final = b"data: [DONE]"
"""At the start of a line: the text of an answer may have it too, but has no raw line end."""
_NO_CHOICES: Final = b'"choices":[]'
"""As no text can have it: JSON escapes quotation marks."""
_LENGTH: Final = b"content-length"
_PLACE: Final = "the verdict on an answer"


class Answer:
    """One answer on its way to the client.

    Args:
        send: takes its messages, as ASGI has them.
        counters: counts answers without the verdict that they should have had.
    """

    __slots__ = ("_collector", "_counters", "_first", "_held", "_is_done", "_is_stream", "_last", "_parts", "_send")

    def __init__(self, send: Send, counters: Counters) -> None:
        self._send = send
        self._counters = counters
        self._collector = Collector()
        self._is_stream = False
        self._is_done = False  # nothing is left to be added
        self._held: Message | None = None  # the start of a whole answer
        self._parts: list[bytes] = []  # its body
        self._first = self._last = b""  # events of a stream

    @property
    def collector(self) -> Collector:
        """What its sequences are reported to."""
        return self._collector

    def send(self, message: Message) -> Awaitable[None]:
        """Take a message."""
        if self._is_done or (not self._collector.is_asked and message["type"] != "http.response.start"):
            return self._send(message)  # nearly all of them
        return self._take(message)

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._is_stream:
            for one in await self._stream(message):
                await self._send(one)
        elif self._held is not None:
            await self._gather(self._held, message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        kind = _header(message, b"content-type")
        plain = message["status"] == 200 and not _header(message, b"content-encoding")
        self._is_stream = plain and kind.startswith(b"text/event-stream")
        if self._is_stream:
            await self._send(message)
        elif plain and self._collector.is_asked and kind.startswith(b"application/json"):
            self._held = message
        else:
            self._is_done = True
            if self._collector.is_asked and message["status"] == 200:
                _warn(kind)
            await self._send(message)

    async def _gather(self, start: Message, message: Message) -> None:
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body, self._held, self._is_done = b"".join(self._parts), None, True
        start, body = await self._whole(start, body)
        await self._send(start)
        await self._send({**message, "body": body})

    async def _verdicts(self) -> list[dict[str, Any]] | None:
        """The verdicts on its choices; None where they cannot be given, which is counted where they are late."""
        is_due = self._collector.is_due
        found = await self._collector.verdicts(LONGEST_WAIT_S)
        self._counters.count_loss(Loss.VERDICT_LATE, int(is_due and found is None))
        return found

    async def _whole(self, start: Message, body: bytes) -> tuple[Message, bytes]:
        """A whole answer with the verdict on it, or unchanged where it is not a JSON object."""
        inner = body.rstrip()[:-1]
        if not inner.startswith(b'{"') or body.rstrip()[-1:] != b"}":
            _warn(b"application/json")
            return start, body
        try:
            found = await self._verdicts()
            longer = b"".join((inner, b',"', KEY.encode(), b'":', as_json(found), body[len(inner) :]))
            kept = [(name, value) for name, value in start["headers"] if name.lower() != _LENGTH]
            kept += [(_LENGTH, str(len(longer)).encode()), (HEADER, worst(found).encode())]
            if flags := raised(found):
                kept.append((FLAGS_HEADER, ",".join(flags).encode()))
        except Exception:
            swallow(_PLACE)
            return start, body
        return {**start, "headers": kept}, longer

    async def _stream(self, message: Message) -> list[Message]:
        """A message of a stream, with the verdict's event before it where its place is."""
        body: bytes = message.get("body", b"")
        if not self._first and _DATA in body:
            self._first = body
        done = 0 if body.startswith(_DONE) else body.find(b"\n" + _DONE) + 1 or None
        is_last = done is not None or not message.get("more_body", False)
        if not is_last and not (_NO_CHOICES in body and self._collector.has_ended):
            self._last = body or self._last
            return [message]
        self._is_done = True
        try:
            event = await self._event()
        except Exception:
            swallow(_PLACE)
            event = None
        if event is None:
            return [message]
        at = 0 if done is None or _NO_CHOICES in body else done
        more = {**message, "body": body[:at] + event, "more_body": True}
        return [more, {**message, "body": body[at:]}]

    async def _event(self) -> bytes | None:
        first = _event_of(self._first)
        if first is None:
            _warn(b"text/event-stream")
            return None
        if "choices" in first:
            copied = {name: first[name] for name in _COPIED if name in first}
            return b"data: " + as_json({**copied, "choices": [], KEY: await self._verdicts()}) + b"\n\n"
        if not str(first.get("type", "")).startswith("response."):
            _warn(b"text/event-stream")
            return None
        number = (_event_of(self._last) or {}).get("sequence_number")
        about = {"type": EVENT, "sequence_number": number + 1 if isinstance(number, int) else 0}
        return f"event: {EVENT}\ndata: ".encode() + as_json({**about, KEY: await self._verdicts()}) + b"\n\n"


def _event_of(body: bytes) -> dict[str, Any] | None:
    """The data of the first event in a part of a stream; None where it is not a JSON object."""
    at = body.find(_DATA)
    line = body[at + len(_DATA) - 1 :].split(b"\n", 1)[0] if at >= 0 else b""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _header(message: Message, name: bytes) -> bytes:
    found = next((value for given, value in message.get("headers", ()) if given.lower() == name), b"")
    return bytes(found)


def _warn(kind: bytes) -> None:
    warn_once("verdict:form", "corevital_return: this kind of answer cannot have the verdict on it (%s): ask "
              "GET /corevital/v1/requests/ID for the report", kind.decode("ascii", "replace")[:64])  # fmt: skip
