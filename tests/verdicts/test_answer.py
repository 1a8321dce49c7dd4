"""An answer with the verdict on it: all else is byte for byte what the engine sent."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.report import Health, RequestReport, Risk
from corevital_otel.spans.http_context import follow_requests
from corevital_otel.verdicts import answer
from corevital_otel.verdicts.answer import Answer
from corevital_otel.verdicts.collector import CURRENT, Expected

Make = Callable[..., RequestReport]

CHUNK = b'data: {"id":"c1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[{"index":0,"delta":'
SAID = CHUNK + b'{"content":"\\"choices\\":[]"}}]}\n\n'
USAGE = b'data: {"id":"c1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[],"usage":{}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = b'{"id":"c1","choices":[{"index":0},{"index":1}],"usage":null}'
VERDICT = {
    "index": 0, "risk_score": 0.25, "risk_level": "low", "risk_basis": "prior", "flags": [], "loop_onset": None
}  # fmt: skip


class Engine:
    """A stand-in for the frontend and the hub: admits sequences in the request's task, reports from a thread."""

    def __init__(self, *reports: RequestReport, ends: bool = True, late_s: float = 0.01) -> None:
        self.reports, self.ends, self.late_s = reports, ends, late_s

    def serve(self) -> None:
        collector = CURRENT.get()
        assert collector is not None
        for report in self.reports:
            expected = collector.expect()
            expected.has_ended = self.ends
            threading.Timer(self.late_s, expected.report, [report]).start()


def ask(endpoint: Any, counters: Counters | None = None, method: str = "POST") -> list[dict[str, Any]]:
    """The messages that an application's server gets of an answer."""
    counters = counters or Counters()
    application = Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0 if not sent else 3600)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/", "headers": [], "query_string": b"", "asgi": {}}
    asyncio.run(application(scope, receive, send))
    return sent


@pytest.fixture(autouse=True)
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    counted = Counters()
    monkeypatch.setattr(Starlette, "__call__", Starlette.__call__)
    follow_requests(None, lambda send: Answer(send, counted))
    return counted


def body(sent: list[dict[str, Any]]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


def headers(sent: list[dict[str, Any]]) -> dict[bytes, bytes]:
    return dict(sent[0]["headers"])


def whole(engine: Engine, text: bytes = WHOLE, **more: Any) -> Any:
    async def endpoint(request: Request) -> Response:
        engine.serve()
        return Response(text, media_type=more.pop("media_type", "application/json"), **more)

    return endpoint


def streamed(engine: Engine, *events: bytes) -> Any:
    async def pieces() -> Any:
        engine.serve()  # vLLM's frontend admits a streamed request when its first piece is asked for
        for event in events:
            yield event

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type="text/event-stream")

    return endpoint


def test_an_answer_without_flags_has_no_header_of_them(report: Make) -> None:
    assert b"x-corevital-flags" not in headers(ask(whole(Engine(report()))))


def test_a_whole_answer_gets_the_key_last_and_the_header(report: Make) -> None:
    loop = report(
        sequence=1, risk=Risk(score=None, level="high"), health=Health(repetition_loop_detected=True, loop_onset=9)
    )
    sent = ask(whole(Engine(loop, report())))
    assert body(sent).startswith(WHOLE[:-1] + b',"corevital":[{')
    assert json.loads(body(sent))["corevital"] == [
        VERDICT,
        {**VERDICT, "index": 1, "risk_score": None, "risk_level": "high", "flags": ["repetition_loop_detected"],
         "loop_onset": 9},
    ]  # fmt: skip
    assert headers(sent)[b"x-corevital-risk-level"] == b"high"
    assert headers(sent)[b"x-corevital-flags"] == b"repetition_loop_detected"
    assert headers(sent)[b"content-length"] == str(len(body(sent))).encode()


@pytest.mark.parametrize("usage", [(), (USAGE,)])
def test_a_stream_gets_one_event_before_its_usage_or_its_end(report: Make, usage: tuple[bytes, ...]) -> None:
    first = CHUNK + b'{"role":"assistant"}}]}\n\n'
    sent = ask(streamed(Engine(report()), first, SAID, *usage, DONE))
    ours = b'data: {"id":"c1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[],"corevital":'
    event = ours + json.dumps([VERDICT], separators=(",", ":")).encode() + b"}\n\n"
    assert body(sent) == b"".join((first, SAID, event, *usage, DONE))
    assert b"x-corevital-risk-level" not in headers(sent)


def test_a_text_about_streams_ends_none(report: Make) -> None:
    about = CHUNK + b'{"content":"data: [DONE]"}}]}\n\n'
    sent = ask(streamed(Engine(report()), SAID, about, about + DONE))
    before, event, after = body(sent).partition(
        b'data: {"id":"c1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[],'
    )
    assert (before, bool(event)) == (SAID + about + about, True)
    assert after.endswith(b"}\n\n" + DONE)


def test_events_that_come_in_one_message_are_kept_apart(report: Make) -> None:
    sent = ask(streamed(Engine(report()), SAID + DONE))
    before, event, after = body(sent).partition(b'"choices":[],"corevital"')
    assert event
    assert before.startswith(SAID)
    assert after.endswith(DONE)


def test_a_response_gets_a_typed_event_at_its_end(report: Make) -> None:
    events = [
        b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed","sequence_number":1}\n\n',
    ]
    sent = ask(streamed(Engine(report()), *events))
    head, _, ours = body(sent).partition(b"event: keepalive\ndata: ")
    assert head == b"".join(events)
    assert json.loads(ours) == {"type": "keepalive", "sequence_number": 2, "corevital": [VERDICT]}


def test_who_did_not_ask_gets_the_very_messages_of_the_server(counters: Counters) -> None:
    events = (SAID, USAGE, DONE)
    plain = Engine()
    assert [message["body"] for message in ask(streamed(plain, *events))[1:]] == [*events, b""]
    sent = ask(whole(plain))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert body(sent) == WHOLE
    assert headers(sent) == {b"content-length": str(len(WHOLE)).encode(), b"content-type": b"application/json"}
    assert counters.losses() == {}


def test_only_an_answer_to_a_post_can_have_the_verdict() -> None:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(CURRENT.get()))

    assert body(ask(endpoint, method="GET")) == b"None"
    assert body(ask(endpoint)) != b"None"


@pytest.mark.parametrize(
    ("engine", "lost"),
    [
        ({"late_s": 0.5}, 1),
        ({"ends": False}, 0),  # a response in the background
    ],
)
def test_a_verdict_that_is_not_there_in_time_is_null_and_counted(
    report: Make, counters: Counters, monkeypatch: pytest.MonkeyPatch, engine: Any, lost: int
) -> None:
    monkeypatch.setattr(answer, "LONGEST_WAIT_S", 0.05)
    sent = ask(whole(Engine(report(), **engine)))
    assert body(sent) == WHOLE[:-1] + b',"corevital":null}'
    assert headers(sent)[b"x-corevital-risk-level"] == b"unknown"
    assert counters.lost(Loss.VERDICT_LATE) == lost


def test_a_choice_that_is_not_measured_leaves_no_verdict(report: Make, counters: Counters) -> None:
    async def endpoint(request: Request) -> Response:
        collector = CURRENT.get()
        assert collector is not None
        collector.give_up()
        return Response(WHOLE, media_type="application/json")

    assert body(ask(endpoint)).endswith(b',"corevital":null}')
    assert counters.losses() == {}


@pytest.mark.parametrize(
    ("text", "more"),
    [
        (b"[1]", {}),
        (b"{}", {}),
        (b"not JSON}", {}),
        (b"", {}),
        (WHOLE, {"media_type": "text/plain"}),
        (WHOLE, {"headers": {"content-encoding": "gzip"}}),
        (b'{"error":{}}', {"status_code": 400}),
    ],
)
@pytest.mark.filterwarnings("default")
def test_an_answer_of_another_kind_is_unchanged(report: Make, text: bytes, more: dict[str, Any]) -> None:
    sent = ask(whole(Engine(report()), text, **more))
    assert body(sent) == text
    assert b"x-corevital-risk-level" not in headers(sent)


@pytest.mark.parametrize("event", [b": a comment\n\n", b"data: {broken\n\n", b'data: {"type":"message_start"}\n\n'])
def test_a_stream_of_another_kind_is_unchanged(report: Make, event: bytes) -> None:
    assert body(ask(streamed(Engine(report()), event, DONE))) == event + DONE


def test_an_error_of_ours_leaves_the_answer_as_it_was(report: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")

    def broken(value: object) -> bytes:
        raise RuntimeError("broken")

    monkeypatch.setattr(answer, "as_json", broken)
    assert body(ask(whole(Engine(report())))) == WHOLE
    assert body(ask(streamed(Engine(report()), SAID, USAGE, DONE))) == SAID + USAGE + DONE


def test_a_server_that_has_ended_disturbs_no_report(report: Make) -> None:
    expected: list[Expected] = []

    async def endpoint(request: Request) -> Response:
        collector = CURRENT.get()
        assert collector is not None
        expected.append(collector.expect())
        expected[0].has_ended = True
        asyncio.get_running_loop().call_later(0.05, asyncio.get_running_loop().stop)
        return JSONResponse({"id": "c1"})

    with pytest.raises(RuntimeError, match="stopped"):
        ask(endpoint)
    expected[0].report(report())
