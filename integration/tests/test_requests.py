"""Requests of every kind and with every end: one row per sequence, and no sequence stays running."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.harness.runners import python_path
from integration.harness.vllm_server import MODEL, MODEL_NAME, Vllm, vllm
from tests.harness.processes import BIN, environment

from corevital_otel.store.reader import StoredReport, StoreError, StoreReader

pytestmark = pytest.mark.engine

SAID = [{"role": "user", "content": "What is 1 + 2?"}]
LONG = {"max_tokens": 1900, "ignore_eos": True}
FORGED = f"{'f' * 32}:1"


class Server:
    """A server without vLLM's statistics, which logs requests and has vLLM's own endpoints for developers."""

    def __init__(self, process: Vllm, database: Path) -> None:
        self.process = process
        self.database = database

    def send(self, path: str, body: dict[str, Any], request_id: str = "", timeout_s: float = 60) -> str:
        """The answer's text, or an error's status and text."""
        headers = {"Content-Type": "application/json", **({"X-Request-Id": request_id} if request_id else {})}
        data = json.dumps({"model": MODEL_NAME, **body}).encode()
        asked = urllib.request.Request(self.process.url + path, data, headers)  # noqa: S310 - a URL of the test
        try:
            with urllib.request.urlopen(asked, timeout=timeout_s) as answer:  # noqa: S310 - a URL of the test
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return f"HTTP {error.code} {error.read().decode()}"

    def hang_up(self, path: str, body: dict[str, Any], after_s: float) -> None:
        """Send, and close the connection a moment later."""
        data = json.dumps({"model": MODEL_NAME, **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: server\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        with socket.create_connection(("127.0.0.1", self.process.port)) as client:
            client.sendall(head.encode() + b"\r\n\r\n" + data)
            time.sleep(after_s)

    @contextmanager
    def under_way(self, request_id: str, tokens: int = 1900) -> Iterator[None]:
        """A long request runs during the block, and is finished when the block ends."""
        body = {"prompt": "Tell me a story.\n", "max_tokens": tokens, "ignore_eos": True}
        thread = threading.Thread(target=self.send, args=("/v1/completions", body, request_id, 120))
        thread.start()
        wait_until(lambda: self.running() > 0)
        yield
        thread.join()

    def running(self) -> float:
        with urllib.request.urlopen(f"{self.process.url}/metrics", timeout=30) as page:  # noqa: S310 - a URL of the test
            lines = page.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("corevital_sequences_running"))

    def rows(self) -> list[StoredReport]:
        try:
            return StoreReader(self.database).list_reports(limit=10_000)
        except StoreError:  # none yet
            return []

    def row_of(self, request_id: str) -> list[StoredReport]:
        """The rows of a request, by sequence number, as soon as there are any."""
        wait_until(lambda: any(row.request_id == request_id for row in self.rows()))
        found = [row for row in self.rows() if row.request_id == request_id]
        return sorted(found, key=lambda row: row.sequence)


def wait_until(done: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("requests")
    env = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": python_path()}
    arguments = ("--dtype", "float32", "--disable-log-stats", "--enable-log-requests")
    with vllm(folder, *arguments, env=env) as process:
        yield Server(process, folder / "runs/corevital.db")


CHAT = {"messages": SAID, "max_tokens": 4}
SERVED: dict[str, tuple[str, dict[str, Any], str, int, str]] = {
    "chat": ("/v1/chat/completions", {**CHAT, "n": 2, "stream": True}, "chatcmpl-", 2, "chat"),
    "prompts": ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 3}, "cmpl-", 4, "text_completion"),
    "streamed": ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3, "stream": True}, "cmpl-", 2,
                 "text_completion"),
    "batch": ("/v1/chat/completions/batch", {"messages": [SAID] * 3, "max_tokens": 3}, "chatcmpl-", 3, "chat"),
    "scores": ("/generative_scoring", {"query": "a", "items": ["b", "c"], "label_token_ids": [5, 6]},
               "generative-scoring-", 1, "text_completion"),
    "hosted": ("/invocations", CHAT, "chatcmpl-", 1, "chat"),
    "hosted prompts": ("/invocations", {"prompt": ["a", "b"], "max_tokens": 2}, "cmpl-", 2, "text_completion"),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
def test_a_request_has_the_clients_id_numbers_from_zero_and_its_operation(server: Server, name: str) -> None:
    path, body, prefix, sequences, operation = SERVED[name]
    mine = f"own-{name.replace(' ', '_')}-7_3"  # ends as vLLM's own numbers do
    answer = server.send(path, {**body, "vllm_xargs": {"corevital": FORGED}}, mine)
    assert f'"id":"{prefix}{mine}"' in answer
    wait_until(lambda: len(server.row_of(prefix + mine)) >= sequences)
    rows = server.row_of(prefix + mine)
    assert [row.sequence for row in rows] == list(range(sequences))
    for row in rows:
        assert row.summary["gen_ai.operation.name"] == operation
        assert row.summary["gen_ai.response.time_to_first_chunk"] > 0, "without vLLM's statistics too"
        assert min(row.summary[f"corevital.{phase}_s"] for phase in ("queue", "prefill", "decode")) >= 0
        assert row.summary["corevital.preemptions"] >= 0
        assert row.output_tokens == row.summary["corevital.tokens.observed"] > 0
        assert "corevital.incomplete" not in row.summary
        assert ("truncated" in row.flags) == (row.finish_reason == "length")
    assert name != "scores" or {row.finish_reason for row in rows} == {"stop"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_the_id_that_its_caller_chose(server: Server, stream: bool) -> None:
    for mine in (f"job-{stream}", f"cmpl-{stream}-3", f"resp_{stream}_5"):
        body = {"input": "What is 1 + 2?", "max_output_tokens": 4, "request_id": mine, "stream": stream}
        assert f'"id":"{mine}"' in server.send("/v1/responses", body)
        (row,) = server.row_of(mine)
        assert (row.sequence, row.summary["gen_ai.operation.name"]) == (0, "chat")


def test_messages_have_the_id_that_their_client_sees(server: Server) -> None:
    for stream in (False, True):
        answer = server.send("/v1/messages", {**CHAT, "stream": stream})
        (mine,) = set(re.findall(r'"id":"([^"]+)"', answer))
        (row,) = server.row_of(mine)
        assert (row.sequence, row.summary["gen_ai.operation.name"]) == (0, "chat")


def test_beam_search_steps_are_not_requests(server: Server) -> None:
    server.send("/v1/completions", {"prompt": "a", "max_tokens": 2}, "before-beams")
    server.row_of("cmpl-before-beams")
    before = len(server.rows())
    beams = {"use_beam_search": True, "n": 3, "max_tokens": 5, "temperature": 0}
    for path, body in (("/v1/chat/completions", {"messages": SAID}), ("/v1/completions", {"prompt": ["a", "b"]})):
        assert len(json.loads(server.send(path, {**body, **beams}, "beams"))["choices"]) >= 3
    server.send("/v1/completions", {"prompt": "a", "max_tokens": 2}, "after-beams")
    server.row_of("cmpl-after-beams")
    assert len(server.rows()) == before + 1
    assert server.process.text().count("beam search is not measured") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_is_ended_early_with_its_reason_each_choice_alone(server: Server, stream: bool) -> None:
    """One token forever, by its bias; ``integration/tests/test_offline.py`` has loops of the model's."""
    body = {
        "messages": SAID, "n": 2, "max_tokens": 200, "ignore_eos": True, "return_token_ids": True,
        "logit_bias": {"50": 100},
    }  # fmt: skip
    whole = json.loads(server.send("/v1/chat/completions", body))["choices"]
    mine = f"stopped-{stream}"
    asked = {**body, "stream": stream, "vllm_xargs": {"corevital_stop_on": "loop"}}
    answer = server.send("/v1/chat/completions", asked, mine)
    found = choices(answer) if stream else {choice["index"]: choice for choice in json.loads(answer)["choices"]}
    assert len(found) == 2
    for index, choice in found.items():
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "corevital:loop")
        assert choice["token_ids"] == whole[index]["token_ids"][: len(choice["token_ids"])]
        assert len(choice["token_ids"]) == 64, "a loop of one token is long enough at 50, and looked for every 16"
    wait_until(lambda: len(server.row_of(f"chatcmpl-{mine}")) == 2)
    for row in server.row_of(f"chatcmpl-{mine}"):
        assert (row.finish_reason, row.summary["corevital.stop_reason"]) == ("stop", "corevital:loop")
        assert "repetition_loop_detected" in row.flags
        assert row.output_tokens == len(found[row.sequence]["token_ids"])
    with urllib.request.urlopen(f"{server.process.url}/metrics", timeout=30) as page:  # noqa: S310 - a URL of the test
        lines = page.read().decode().splitlines()
    (stopped,) = (line for line in lines if line.startswith("corevital_requests_stopped_total{") and '"loop"' in line)
    assert float(stopped.rsplit(" ", 1)[1]) >= 2
    (saved,) = (line for line in lines if line.startswith("corevital_tokens_saved_total{"))
    assert float(saved.rsplit(" ", 1)[1]) >= 2 * (200 - 64)


def choices(answer: str) -> dict[int, dict[str, Any]]:
    """The choices of a streamed answer, by index, each put together."""
    found: dict[int, dict[str, Any]] = {}
    for line in answer.splitlines():
        if not line.startswith("data: {"):
            continue
        for part in json.loads(line.removeprefix("data: "))["choices"]:
            whole = found.setdefault(part["index"], {"token_ids": []})
            whole["token_ids"] += part.get("token_ids") or []
            if part.get("finish_reason"):
                whole |= {name: part[name] for name in ("finish_reason", "stop_reason")}
    return found


def test_a_wrong_argument_is_http_400_everywhere(server: Server) -> None:
    answer = server.send("/v1/completions", {"prompt": "a", "vllm_xargs": {"corevital_stop_on": "everything"}})
    assert answer.startswith("HTTP 400 ")
    assert "corevital_stop_on='everything' is not allowed: use some of nan, loop, alarm, or none" in answer
    before = len(server.rows())
    batch = {"messages": [SAID] * 2, "max_tokens": 2}
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 2}),
        ("/v1/chat/completions/batch", batch),
        ("/invocations", CHAT),
        ("/v1/messages", CHAT),
    ):
        for more in ({}, {"stream": True}, {"n": 2}):
            if more and path.endswith("batch"):
                continue
            wrong = {"corevital_capture": "\x1b[2J" + "x" * 100_000}
            answer = server.send(path, {**body, **more, "vllm_xargs": wrong})
            assert answer.startswith("HTTP 400 "), (path, more, answer[:500])
            assert "use one of summary, full, on_risk" in answer
            assert len(answer) < 600
            assert "\\u001b" not in answer.lower()
    assert server.running() == 0
    assert len(server.rows()) == before


def test_every_way_a_request_can_end_leaves_none_running(server: Server) -> None:
    half = {"vllm_xargs": {"x": "\ud800"}}  # vLLM registers it, and cannot serialise it
    expected = Counter[tuple[str, bool]]()
    seen = {row.span_id for row in server.rows()}

    # what cannot be sent to the engine
    for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}, {"prompt": ["a", "b"]}):
        for n in (1, 2):
            answer = server.send("/v1/completions", {**body, **half, "n": n, "max_tokens": 2}, f"half-{n}")
            assert "InternalServerError" in answer
    answer = server.send("/v1/chat/completions/batch", {"messages": [SAID] * 2, "max_tokens": 2, **half})
    assert answer.startswith("HTTP 500")
    # refused earlier: nothing was admitted
    refused: tuple[dict[str, Any], ...] = (
        {"prompt": "a " * 5000},
        {"prompt": [999_999]},
        {"prompt": "a", "structured_outputs": {"regex": "("}},
        {"prompt": "a", "logit_bias": {"999999": 1}},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "model": "no-such-adapter"},
    )
    for wrong in refused:
        assert server.send("/v1/completions", {"max_tokens": 2, **wrong}).startswith("HTTP 40")
    wait_until(lambda: server.running() == 0)
    # clients that hang up: before, while and after the request is sent to the engine
    for after_s in (0.0, 0.002, 0.01, 0.1):
        for stream, n in ((True, 1), (True, 2), (False, 1), (False, 2)):
            server.hang_up("/v1/chat/completions", {"messages": SAID, **LONG, "stream": stream, "n": n}, after_s)
        server.hang_up("/v1/completions", {"prompt": ["a", "b"], **LONG}, after_s)
        server.hang_up("/v1/responses", {"input": "a", "max_output_tokens": 1900}, after_s)
        server.hang_up("/v1/chat/completions/batch", {"messages": [SAID] * 2, **LONG}, after_s)
        server.hang_up("/v1/chat/completions", {"messages": SAID, **LONG, "use_beam_search": True, "n": 3}, after_s)
        server.hang_up("/generative_scoring", {"query": "a", "items": ["b"] * 99, "label_token_ids": [1]}, after_s)
    wait_until(lambda: server.running() == 0)
    # the engine is paused: with a request running, with one that arrives, and with one that does not wait
    for mode in ("abort", "wait", "keep"):
        with server.under_way(f"under-way-{mode}", 1900 if mode == "abort" else 600):
            pausing = threading.Thread(target=server.send, args=(f"/pause?mode={mode}&clear_cache=false", {}))
            pausing.start()  # the mode "wait" answers when nothing is running
            time.sleep(0.3)
            arrival = ("/v1/completions", {"prompt": "a", "max_tokens": 3}, f"arrives-{mode}")
            arriving = threading.Thread(target=server.send, args=arrival)
            arriving.start()
            server.hang_up("/v1/completions", {"prompt": "a", "max_tokens": 3}, 0.3)
            pausing.join()
            server.send("/resume", {})
            arriving.join()
        wait_until(lambda: server.running() == 0)
        expected[_end(server, f"cmpl-arrives-{mode}")] += 1
        expected[_end(server, f"cmpl-under-way-{mode}")] += 1
    aborted = sum(count for (reason, _), count in expected.items() if reason == "abort")
    assert aborted <= 1, "the mode `abort` alone, unless a busy machine is too late"
    # aborted by its id, put to sleep, taken out of the cache
    paused: list[tuple[str, dict[str, Any]]] = [("/pause?mode=abort&clear_cache=false", {}), ("/resume", {})]
    assert _is_aborted(server, "paused", paused)
    assert _is_aborted(server, "asleep", [("/sleep?level=1", {}), ("/wake_up", {})])
    assert _is_aborted(server, "by-id", [("/abort_requests", {"request_ids": [f"cmpl-by-id-{n}-0" for n in range(5)]})])
    with server.under_way("reset", 600):
        server.send("/reset_prefix_cache?reset_running_requests=true", {})
    assert _end(server, "cmpl-reset") == ("length", True)
    wait_until(lambda: server.running() == 0)

    rows = [row for row in server.rows() if row.span_id not in seen]
    failed = [row for row in rows if row.finish_reason == "error"]
    assert len(failed) >= 3
    assert all(row.output_tokens == 0 for row in failed)
    assert all("corevital.incomplete" not in row.summary for row in rows if row.finish_reason != "abort")
    ids = Counter((row.request_id, row.sequence) for row in rows if not row.request_id.startswith("cmpl-half"))
    assert set(ids.values()) == {1}, "one row per sequence"


def _is_aborted(server: Server, name: str, calls: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether these calls abort a request. One of five tries: a busy machine may finish it before they arrive."""
    for attempt in range(5):
        with server.under_way(f"{name}-{attempt}"):
            for path, body in calls:
                server.send(path, body)
        if _end(server, f"cmpl-{name}-{attempt}") == ("abort", True):
            return True
    return False


def _end(server: Server, request_id: str) -> tuple[str, bool]:
    (row,) = server.row_of(request_id)
    return row.finish_reason, row.output_tokens > 0


def test_the_stamp_is_in_no_log(server: Server) -> None:
    log = server.process.text()
    assert "Received request" in log
    assert not re.findall(r"(?<!f)[0-9a-f]{32}:[0-9a-f]{8,16}", log.replace(FORGED, ""))


def test_a_stopped_server_keeps_the_statistics_of_its_last_requests(server: Server) -> None:
    def ask(number: int) -> None:
        server.send("/v1/completions", {"prompt": "a", "max_tokens": 2 + number}, f"last-{number}")

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    os.kill(server.process.process.pid, signal.SIGTERM)
    assert server.process.wait_gone(60) == {}
    rows = [row for row in server.rows() if row.request_id.startswith("cmpl-last-")]
    assert len(rows) == 12
    assert [row.request_id for row in rows if "corevital.incomplete" in row.summary] == []
    after = server.process.text().partition("shutdown triggered")[2]
    # vLLM's shutdown ends the engine, logs, and only then cancels its output handler, which may see the engine gone
    gone = after.count("vllm.v1.engine.exceptions.EngineDeadError")
    assert gone <= 1
    assert after.count("Traceback") == gone
    assert "/corevital" not in after


def test_a_batch_that_ran_to_its_end_has_all_its_statistics(tmp_path: Path) -> None:
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": {
            "model": MODEL_NAME, "max_tokens": 3 + i % 30,
            "messages": [{"role": "user", "content": f"What is {i} + 1?"}]}}
        for i in range(40)
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = [str(BIN / "vllm"), "run-batch", "-i", "in.jsonl", "-o", "out.jsonl", "--model", str(MODEL)]
    command += ["--served-model-name", MODEL_NAME, "--logits-processors", "corevital", "--enforce-eager"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment({}), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with sqlite3.connect(tmp_path / "runs/corevital.db") as connection:
        rows = connection.execute("SELECT request_id, sequence, summary FROM reports").fetchall()
    connection.close()
    assert {(row[0], row[1]) for row in rows} == {(answer["response"]["body"]["id"], 0) for answer in answers}
    assert len(rows) == 40
    for row in rows:
        summary = json.loads(row[2])
        assert "corevital.incomplete" not in summary
        assert summary["gen_ai.operation.name"] == "chat"
