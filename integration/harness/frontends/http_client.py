"""Sends the mixed requests to an HTTP server of vLLM, many at a time; some hang up before the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from integration.harness.frontends.mixed import Answer, Request
from integration.harness.vllm_server import MODEL_NAME

_NO_REUSE = httpx.Limits(max_keepalive_connections=0)
_AT_ONCE = 16

_TOKENS = re.compile(r"^vllm:generation_tokens_total\{.*\} (\S+)$", re.MULTILINE)
_SURELY = 32
"""Tokens after which a request that is alone is known to run: others that were aborted make a few more."""


def body(request: Request) -> dict[str, Any]:
    """The request's body, as ``/v1/chat/completions`` or ``/v1/completions`` takes it."""
    said: dict[str, Any] = {"prompt": request.prompt + "\n"}
    if request.chat:
        said = {"messages": [{"role": "user", "content": request.prompt}]}
    more: dict[str, Any] = {"vllm_xargs": request.arguments} if request.arguments else {}
    if request.stream:
        more |= {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": MODEL_NAME, **said, **request.params, **more}


def path(request: Request) -> str:
    return "/v1/chat/completions" if request.chat else "/v1/completions"


def take(answer: Answer, data: dict[str, Any]) -> None:
    """Add a whole answer, or one chunk of it, to what the client saw."""
    answer.request_id = data["id"]
    for choice in data["choices"]:
        said = choice.get("message") or choice.get("delta")
        text = choice.get("text") if said is None else said.get("content")
        answer.texts[choice["index"]] = answer.texts.get(choice["index"], "") + (text or "")
        if choice.get("finish_reason"):
            answer.finish_reasons[choice["index"]] = choice["finish_reason"]
    if data.get("usage"):
        answer.output_tokens = data["usage"]["completion_tokens"]


def _send(http: httpx.Client, request: Request) -> Answer:
    answer = Answer(request.name)
    with http.stream("POST", path(request), json=body(request), headers=_headers(request)) as reply:
        if reply.status_code == 400:
            answer.refused = reply.read().decode()
            return answer
        reply.raise_for_status()
        if not request.stream:
            take(answer, json.loads(reply.read()))
            return answer
        chunks = 0
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                take(answer, json.loads(line.removeprefix("data: ")))
                chunks += 1
                if chunks == request.chunks:
                    break
    return answer


def _headers(request: Request) -> dict[str, str]:
    return {"X-Request-Id": request.name}


async def _leave(url: str, request: Request) -> Answer:
    """Hang up before the answer, once the engine is at it. No other request runs."""
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=_NO_REUSE) as http:

        async def tokens() -> float:
            return sum(float(found) for found in _TOKENS.findall((await http.get("/metrics")).text))

        before = await tokens()
        sent = asyncio.create_task(http.post(path(request), json=body(request), headers=_headers(request)))
        while not sent.done() and await tokens() < before + _SURELY:
            await asyncio.sleep(0.05)
        sent.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # an idle machine may answer in time
            (await sent).raise_for_status()
    return Answer(request.name, ("chatcmpl-" if request.chat else "cmpl-") + request.name)


def send(url: str, requests: Iterable[Request]) -> list[Answer]:
    """Send all of them, sixteen at a time; then those whose clients leave, one by one."""
    requests = list(requests)
    with httpx.Client(base_url=url, timeout=120, limits=_NO_REUSE) as http, ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = [request for request in requests if request.leave_s is None]
        answers = list(pool.map(lambda request: _send(http, request), waiting))
    return answers + [asyncio.run(_leave(url, request)) for request in requests if request.leave_s is not None]
