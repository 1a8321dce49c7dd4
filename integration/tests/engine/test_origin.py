"""What vLLM's own request objects show of a request's caller and of its leg of disaggregated serving."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from integration.tests.engine.test_frontend import Observer, _queue, frontend, output, request
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreRequest, FinishReason

from corevital.engines.vllm import hooks
from corevital.engines.vllm.origin import Origin
from corevital.frames.lifecycle import Admitted

PARENT = f"00-{'1a' * 16}-{'2b' * 8}-01"
OTHER = f"00-{'3c' * 16}-{'4d' * 8}-00"

NIXL = {"remote_block_ids": [[1, 2]], "remote_engine_id": "engine", "remote_host": "h", "remote_port": 5600}
"""What a first leg answers besides, with NIXL's connector, and a router passes on to the second."""


def admitted(max_tokens: int = 16, args: dict[str, Any] | None = None, **fields: Any) -> Admitted:
    observer = Observer()
    params = SamplingParams(
        max_tokens=max_tokens, extra_args=args, output_kind=RequestOutputKind.DELTA, detokenize=False
    )
    frontend(observer).add_request(request("cmpl-1-0-abcd", params, **fields), None)
    return observer.admitted[0]


def origin_of(found: Admitted) -> Origin:
    return Origin(**{name: getattr(found, name) for name in Origin._fields})


@pytest.mark.parametrize(
    ("max_tokens", "transfer", "expected"),
    [
        (1, {"do_remote_decode": True, "do_remote_prefill": False}, Origin("prefill", "cmpl-1-0-abcd")),
        (1, {"do_remote_decode": True, "remote_request_id": "turn-before", **NIXL}, Origin("prefill", "cmpl-1-0-abcd")),
        (1, {"do_remote_decode": True, "transfer_id": "xfer-1"}, Origin("prefill", "cmpl-1-0-abcd", "xfer-1")),
        (16, {"do_remote_decode": True}, Origin()),
        (16, {"do_remote_prefill": True, "remote_request_id": "cmpl-1-0-ef01", **NIXL}, Origin(None, "cmpl-1-0-ef01")),
        (1, {"do_remote_prefill": True, "remote_request_id": "cmpl-1-0-ef01"}, Origin(None, "cmpl-1-0-ef01")),
        (16, {"do_remote_prefill": True, "transfer_id": "xfer-1"}, Origin(None, None, "xfer-1")),
        (16, {"do_remote_prefill": True, "remote_request_id": ["x"], "transfer_id": 7}, Origin()),
        (16, {"other": "x" * 10}, Origin()),
        (1, None, Origin()),
    ],
)
def test_legs_are_known_by_what_routers_put_into_a_request(max_tokens: int, transfer: Any, expected: Origin) -> None:
    assert origin_of(admitted(max_tokens, {"kv_transfer_params": transfer})) == expected


@pytest.mark.parametrize(
    ("headers", "argument", "parent", "state"),
    [
        ({"traceparent": PARENT, "tracestate": "a=1"}, OTHER, PARENT, "a=1"),
        ({"traceparent": PARENT}, None, PARENT, None),
        ({"traceparent": "wrong", "tracestate": "a=1"}, OTHER, OTHER, None),
        ({}, OTHER, OTHER, None),
        (None, OTHER, OTHER, None),
        (None, None, None, None),
    ],
)
def test_the_caller_is_in_the_trace_headers_else_in_the_argument(
    headers: dict[str, str] | None, argument: str | None, parent: str | None, state: str | None
) -> None:
    if "trace_headers" not in EngineCoreRequest.__struct_fields__:
        pytest.skip("this vLLM has none")
    args = None if argument is None else {"corevital_traceparent": argument}
    assert origin_of(admitted(args=args, trace_headers=headers)) == Origin(traceparent=parent, tracestate=state)


def test_a_first_leg_ends_as_the_engine_says() -> None:
    observer = Observer()
    processor = frontend(observer)
    params = SamplingParams(
        max_tokens=1, extra_args={"kv_transfer_params": {"do_remote_decode": True}}, detokenize=False
    )
    processor.add_request(request("a", params), None, None, 0, _queue())
    processor.process_outputs([output("a", [5], FinishReason.LENGTH)])
    assert (observer.admitted[0].role, observer.reasons) == ("prefill", ["length"])


def test_trace_headers_that_vllm_drops_are_the_parent_all_the_same() -> None:
    """``AsyncLLM.add_request`` drops them where vLLM's own tracing is off; gRPC servers and libraries pass them."""
    observer = Observer()
    processor = frontend(observer)

    class Engine:
        """Stands in for ``AsyncLLM``."""

        async def add_request(self, name: str, trace_headers: object = None) -> None:
            processor.add_request(request(name, SamplingParams(detokenize=False)), None, None, 0, _queue())

    engine = Engine()
    hooks.follow_engine(engine, processor)
    asyncio.run(engine.add_request("a", trace_headers={"traceparent": PARENT}))
    asyncio.run(engine.add_request("b"))
    assert [each.traceparent for each in observer.admitted] == [PARENT, None]
