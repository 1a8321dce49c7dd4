"""Checks of answers that have the verdict on them: found in every form, and all else as without it."""

from __future__ import annotations

import json
import statistics
import threading
import time
from typing import Any, Final

import httpx
from integration.harness.openai_clients import ASKED, Found
from integration.harness.vllm_server import MODEL_NAME, Vllm

_KEYS: Final = {"index", "risk_score", "risk_level", "risk_basis", "flags", "loop_onset"}
_CHANGING: Final = {
    "id", "created", "created_at", "completed_at", "item_id", "corevital", "obfuscation", "system_fingerprint"
}  # fmt: skip
"""What differs from one answer to the next."""


def check(found: Found) -> None:
    """Check what a client gave: see :data:`Found`."""
    plain, asked = found["plain"], found["asked"]
    assert plain.pop("header") is None
    assert asked.pop("header") in ("low", "medium", "high", "unknown")
    for form, answer in asked.items():
        assert "corevital" not in str(plain[form]), form
        of_them = [one["corevital"] for one in answer if "corevital" in one] if isinstance(answer, list) else []
        if not form.endswith("_helper"):  # these gather the choices of a stream and drop all else
            (verdicts,) = of_them if isinstance(answer, list) else [answer["corevital"]]
            assert [one["index"] for one in verdicts] == list(range(2 if form in ("chat", "completion") else 1)), form
            assert all(one.keys() == _KEYS for one in verdicts), form
        if not form.startswith("completion"):  # their texts are drawn
            assert _lasting(answer) == _lasting(plain[form]), form
    _check_streams(asked)


def median_wait_s(url: str, streams: int = 15) -> float:
    """From a stream's last token to its end, where that waits for the verdict: the median, seconds."""
    body = _body(max_tokens=24, ignore_eos=True, stream=True, **ASKED)
    waits = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for _ in range(streams):
            last = 0.0
            with http.stream("POST", "/v1/completions", json=body) as reply:
                for line in reply.iter_lines():
                    last = time.monotonic() if '"finish_reason":"length"' in line else last
            waits.append(time.monotonic() - last)
    return statistics.median(waits)


def check_absent(server: Vllm) -> None:
    """Where the answering process has no reports: the answer is as without the question, and the log says why, once."""
    for _ in range(2):
        reply = httpx.post(f"{server.url}/v1/completions", json=_body(max_tokens=4, **ASKED), timeout=60)
        assert reply.status_code == 200
        assert "corevital" not in reply.json()
        assert "x-corevital-risk-level" not in reply.headers
    assert server.text().count("corevital_return is ignored (telemetry is not in the process of") == 1


def check_route(url: str, *, has_it: bool) -> None:
    """The report of a request on the server's own port: there, running, unknown; where there is such a route."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        path = "/corevital/v1/requests/"
        request_id = http.post("/v1/completions", json=_body(max_tokens=4)).json()["id"]
        found = http.get(path + request_id, params={"wait": 20})
        if not has_it:
            assert found.status_code == 404
            return
        assert found.status_code == 200
        assert found.json()[0]["request_id"] == request_id
        assert http.get(path + "unknown").status_code == 404
        wrong = http.get(path + request_id, params={"wait": "soon"})
        assert wrong.status_code == 400
        assert "use one number of seconds from 0 to 30" in wrong.json()["error"]
        _check_running(http, path)


def _check_running(http: httpx.Client, path: str) -> None:
    begun, asked, seen = threading.Event(), threading.Event(), []

    def long() -> None:
        body = _body(max_tokens=1900, ignore_eos=True, stream=True)
        with http.stream("POST", "/v1/completions", json=body) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    seen.append(json.loads(line.removeprefix("data: "))["id"])
                    begun.set()
                if asked.is_set():
                    return  # hangs up

    asking = threading.Thread(target=long)
    asking.start()
    try:
        assert begun.wait(30)
        assert http.get(path + seen[0]).status_code == 425
    finally:
        asked.set()
        asking.join()


def _body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL_NAME, "prompt": "What is 1 + 2?\n", **more}


def _check_streams(asked: dict[str, Any]) -> None:
    *_, verdict, usage = asked["chat_stream"]
    assert verdict["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert "usage" not in verdict
    assert asked["completion_stream"][-1]["choices"] == []
    numbers = [event["sequence_number"] for event in asked["response_stream"]]
    assert numbers == list(range(len(numbers)))
    assert asked["response_stream"][-1]["type"] == "keepalive"


def _lasting(value: Any) -> Any:
    """The value without what changes from one answer to the next, and without the events that have the verdict."""
    if isinstance(value, dict):
        return {name: _lasting(inner) for name, inner in value.items() if name not in _CHANGING}
    if isinstance(value, list):
        return [_lasting(one) for one in value if not (isinstance(one, dict) and "corevital" in one)]
    return value
