"""Which part of a client's call a request is, and what is current where it is made."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from corevital.engines.vllm import calls
from corevital.engines.vllm.calls import Call, Entry

PLAIN = Entry("m", "C.f", "chat")


def call(entry: Entry = PLAIN, request_id: str | None = None) -> Call:
    made = Call(entry)
    made.request_id = request_id
    return made


@pytest.mark.parametrize(
    ("client_side", "engine_side", "number"),
    [
        ("chatcmpl-8f3a", "chatcmpl-8f3a", 0),
        ("cmpl-8f3a", "cmpl-8f3a-0", 0),
        ("cmpl-my-own-id-12", "cmpl-my-own-id-12-3", 3),
        ("chatcmpl-8f3a", "chatcmpl-8f3a_1", 1),
        ("job", "job_0", 0),
        ("resp_1_2", "resp_1_2_7", 7),
    ],
)
def test_a_part_is_what_vllm_puts_behind_the_clients_id(client_side: str, engine_side: str, number: int) -> None:
    assert call(request_id=client_side).place(engine_side) == (client_side, number)


def test_parts_named_in_a_way_we_do_not_know_are_numbered_as_they_come() -> None:
    here = call(request_id="mine")
    assert [here.place(f"mine-part-{name}") for name in "bab"] == [("mine", 0), ("mine", 1), ("mine", 0)]
    assert here.place("mine-" + "9" * 5000) == ("mine", 2)
    assert here.place("mine-\u0663") == ("mine", 3), "vLLM's numbers have no digits of other scripts"


def test_without_metadata_the_endpoint_says_how_parts_are_numbered() -> None:
    numbered = Entry("m", "C.f", "text_completion", "-")
    assert call(numbered).place("generative-scoring-own-7-2") == ("generative-scoring-own-7", 2)
    assert call(numbered).place("nothing") == ("nothing", 0)
    assert call(PLAIN).place("cmpl-own-7") == ("cmpl-own-7", 0), "an id's shape says nothing"


def kind(name: str = "x") -> str | None:
    return calls.internal_kind(SimpleNamespace(external_req_id=name))


def test_the_warm_up_of_vllms_grpc_server_is_internal() -> None:
    assert kind("smg-warmup-7") == "warm_up"
    assert kind("chatcmpl-smg-warmup-7") is None, "a client's own id over HTTP"


class Metadata:
    def __init__(self, request_id: Any) -> None:
        self.request_id = request_id


class Serving:
    """Stands in for vLLM's serving classes."""

    async def serve(self, parts: int, stream: bool = False) -> Any:
        Metadata("mine")
        return self.stream(parts) if stream else [self.made(part) async for part in self.stream(parts)]

    async def outer(self, parts: int) -> Any:
        return await self.serve(parts)

    async def stream(self, parts: int) -> AsyncGenerator[Any, None]:
        for part in range(parts):
            tasks = [asyncio.create_task(self.inside(part))]  # an engine's request is made in a separate task
            yield (await asyncio.gather(*tasks))[0]

    async def inside(self, part: int) -> Any:
        current = calls.current()
        return None if current is None else (current.entry.operation, *current.place(f"mine-{part}"))

    def made(self, part: Any) -> Any:
        return part

    async def search(self) -> AsyncGenerator[str | None, None]:
        for _ in range(2):
            yield kind()

    def search_now(self) -> str | None:
        return kind()

    async def detect(self) -> str | None:
        return await asyncio.create_task(self.step())

    async def step(self) -> str | None:
        return kind()


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Serving:
    class Fresh(Serving):
        pass

    class FreshMetadata(Metadata):
        pass

    module = ModuleType("vllm.entrypoints.standin")
    module.__dict__.update({"Fresh": Fresh, "FreshMetadata": FreshMetadata})
    monkeypatch.setitem(__import__("sys").modules, "vllm.entrypoints.standin", module)
    monkeypatch.setitem(globals(), "Metadata", FreshMetadata)
    entries = [
        Entry("standin", "Fresh.serve", "chat"), Entry("standin", "Fresh.outer", "text_completion"),
        Entry("standin", "Fresh.gone", "chat"), Entry("nowhere", "Fresh.serve", "chat"),
    ]  # fmt: skip
    monkeypatch.setattr(calls, "ENTRIES", entries)
    steps = (("search", "beam_search"), ("search_now", "beam_search"), ("detect", "language_detection"))
    monkeypatch.setattr(calls, "_STEPS", [("standin", f"Fresh.{name}", kind) for name, kind in steps])
    monkeypatch.setattr(calls, "_METADATA", [("standin", "FreshMetadata")])
    monkeypatch.setattr(calls, "_seen", 0)
    calls.follow()
    calls.follow()  # idempotent
    return Fresh()


def test_what_is_asked_of_the_engine_belongs_to_the_call_around_it(serving: Serving) -> None:
    expected = [("chat", "mine", 0), ("chat", "mine", 1)]

    async def run() -> None:
        assert await serving.serve(2) == expected
        streamed = await serving.serve(2, stream=True)
        assert calls.current() is None
        assert [part async for part in streamed] == expected
        assert calls.current() is None
        assert await serving.outer(1) == [("text_completion", "mine", 0)], "the outermost way of serving counts"
        assert await serving.inside(0) is None

    asyncio.run(run())


def test_a_stream_that_is_left_or_closed_elsewhere_leaves_nothing_behind(serving: Serving) -> None:
    async def run() -> None:
        left, closed, collected = [await serving.serve(3, stream=True) for _ in range(3)]
        for stream in (left, closed, collected):
            await anext(stream)
        await asyncio.create_task(closed.aclose())  # another task, another context
        del collected, stream
        gc.collect()
        await asyncio.sleep(0)
        assert calls.current() is None
        assert await anext(left) == ("chat", "mine", 1)
        waiting = asyncio.create_task(left.__anext__())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())


def test_inner_steps_are_known_as_such_and_only_they(serving: Serving) -> None:
    async def run() -> None:
        assert [inner async for inner in serving.search()] == ["beam_search"] * 2
        assert await serving.detect() == "language_detection"
        assert kind() is None

    asyncio.run(run())
    assert serving.search_now() == "beam_search"
    assert kind() is None


def test_of_the_items_of_a_scoring_call_all_but_the_first_are_internal() -> None:
    for entry, expected in (
        (Entry("m", "C.f", "chat", scores=True), [None, "scoring", "scoring"]),
        (PLAIN, [None] * 3),
    ):
        token = calls._call.set(call(entry, "mine"))
        try:
            assert [kind(f"mine-{item}") for item in range(3)] == expected
            assert [kind(f"mine-{item}") for item in range(3)] == expected, "however often it is asked"
        finally:
            calls._call.reset(token)


def test_a_library_that_loads_vllms_serving_after_its_engine_is_followed_from_then_on(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Serving):
        pass

    monkeypatch.setattr(calls, "ENTRIES", [Entry("late", "Late.serve", "chat")])
    module = ModuleType("vllm.entrypoints.late")
    module.__dict__["Late"] = Late
    monkeypatch.setitem(__import__("sys").modules, "vllm.entrypoints.late", module)
    assert calls.current() is None
    assert asyncio.run(Late().serve(1)) == [("chat", "mine", 0)]


def test_metadata_of_another_shape_is_left_alone(serving: Serving) -> None:
    token = calls._call.set(here := call())
    try:
        Metadata(7)
        assert here.request_id is None
    finally:
        calls._call.reset(token)


def test_a_wrong_argument_is_refused_before_anything_is_served() -> None:
    served = SimpleNamespace(engine_client=SimpleNamespace(), create_error_response=lambda message: f"400 {message}")
    request = SimpleNamespace(vllm_xargs={"corevital_capture": "x"})
    assert calls._refused((served, request), {}) is None, "an engine that nobody follows"
    served.engine_client.__dict__["_corevital_frontend"] = object()
    refused: tuple[Any, ...] = (((served, request), {}), ((served, b"audio"), {"request": request}))
    for arguments in refused:
        assert "400 vllm_xargs: corevital_capture='x'" in str(calls._refused(*arguments))
    assert calls._refused((served, SimpleNamespace(vllm_xargs={"other": 1})), {}) is None
    assert calls._refused((served, SimpleNamespace(vllm_xargs=None)), {}) is None
