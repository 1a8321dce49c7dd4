"""The hub's port as a client meets it: real sockets, each path, and every wrong request."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.http.conftest import Hub, Make, Serve, connected, read_all, write

from corevital_otel import __version__

REQUESTS = "/corevital/v1/requests"


def error_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (text,) = answer.json().values()
    assert set(answer.json()) == {"error"}
    assert text.isprintable()
    assert "Traceback" not in text
    assert len(text) < 500
    return text


# Metrics


def test_metrics_are_those_of_the_registry(serve: Serve) -> None:
    registry = CollectorRegistry()
    Counter("corevital_requests", "Requests.", ["model"], registry=registry).labels("tiny").inc(3)
    Counter("other", "Other.", registry=registry).inc()
    client = serve(registry=registry)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {s.name: s.value for family in parse_text(answer.text) for s in family.samples}
    assert values["corevital_requests_total"] == 3
    open_metrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert "corevital_requests" in {family.name for family in parse_openmetrics(open_metrics.text)}
    assert open_metrics.text.endswith("# EOF\n")
    only = client.get("/metrics", params={"name[]": "other_total"}).text
    assert "other_total 1.0" in only
    assert "corevital_requests" not in only


def test_metrics_of_several_processes_are_added_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "from prometheus_client import Counter; Counter('corevital_test_shared', 'Shared.').inc(2)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, check=True)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert "corevital_test_shared_total 4.0" in serve().get("/metrics").text


def test_metrics_are_the_process_s_by_default(serve: Serve) -> None:
    assert "python_info" in serve().get("/metrics").text


# Health


def test_health_is_the_hub_s(serve: Serve, hub: Hub) -> None:
    hub.set(losses={("span", "queue_full"): 7})
    answer = serve(token="t" * 16).get("/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "version": __version__,
        "uptime_s": 12.5,
        "sequences_running": 3,
        "queue": 4,
        "store_writable": True,
        "losses": [{"what": "span", "why": "queue_full", "count": 7}],
    }


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"stopping": True}, "stopping", 503),
        ({"turned_s": 10.5}, "stuck", 503),
        ({"turned_s": 9.5}, "ok", 200),
        ({"store_writable": False}, "ok", 200),  # spans and metrics go on
    ],
)
def test_a_hub_that_stops_or_hangs_is_unhealthy(
    serve: Serve, hub: Hub, changes: dict[str, object], status: str, code: int
) -> None:
    hub.set(**changes)
    answer = serve().get("/health")
    assert (answer.status_code, answer.json()["status"]) == (code, status)


# Requests


def test_a_report_is_what_show_prints(serve: Serve, store: Path) -> None:
    client = serve(store)
    for asked in ("chatcmpl-one", "one", "two"):
        command = [sys.executable, "-m", "corevital_otel.cli", "show", asked, "--json", "--db", str(store)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        answer = client.get(f"{REQUESTS}/{asked}")
        assert answer.status_code == 200
        assert answer.text == shown
        assert answer.headers["cache-control"] == "no-store"
    assert [row["sequence"] for row in answer.json()] == [0, 1]


def test_the_start_of_an_id_is_another_id(serve: Serve, store: Path) -> None:
    client = serve(store)
    assert "no request 'chatcmpl-on' in the store" in error_of(client.get(f"{REQUESTS}/chatcmpl-on"), 404)


def test_an_id_of_several_requests_is_refused(serve: Serve, store: Path, report: Make) -> None:
    write(store, report(request_id="cmpl-one"), number=4)
    text = error_of(serve(store).get(f"{REQUESTS}/one"), 409)
    assert text == "'one' stands for several requests: use one of chatcmpl-one, cmpl-one"


def test_a_request_that_runs_is_425(serve: Serve, hub: Hub, store: Path) -> None:
    hub.running.add("chatcmpl-late")
    client = serve(store)
    for asked in ("late", "chatcmpl-late"):
        assert "is running" in error_of(client.get(f"{REQUESTS}/{asked}"), 425)
    hub.running.add("cmpl-two")  # one of its sequences has ended
    assert "is running" in error_of(client.get(f"{REQUESTS}/cmpl-two"), 425)


@pytest.mark.parametrize("db", ["none", "missing", "empty"])
def test_without_a_store_there_is_no_report(serve: Serve, tmp_path: Path, db: str) -> None:
    path = tmp_path / f"{db}.db"
    if db == "empty":
        path.touch()
    text = error_of(serve(None if db == "none" else path).get(f"{REQUESTS}/one"), 404)
    assert text.startswith("there is no store: set COREVITAL_DB" if db == "none" else "no request 'one' in the store")


def test_a_damaged_store_is_one_line(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "damaged.db").write_bytes(b"no database at all" * 100)
    text = error_of(serve(tmp_path / "damaged.db").get(f"{REQUESTS}/one"), 503)
    assert text == "the store cannot be read: `corevital doctor` shows why"


def test_wait_ends_with_the_report(serve: Serve, hub: Hub, store: Path, report: Make) -> None:
    hub.running.add("chatcmpl-late")
    client = serve(store)

    def end() -> None:
        time.sleep(0.7)
        write(store, report(request_id="chatcmpl-late"), number=9)
        hub.running.clear()

    ending = threading.Thread(target=end)
    ending.start()
    begun = time.monotonic()
    answer = client.get(f"{REQUESTS}/late", params={"wait": "15"})
    spent = time.monotonic() - begun
    ending.join()
    assert answer.status_code == 200
    assert answer.json()[0]["request_id"] == "chatcmpl-late"
    assert 0.5 < spent < 10


def test_wait_ends_after_its_time(serve: Serve, hub: Hub, store: Path) -> None:
    hub.running.add("late")
    client = serve(store)
    for asked, status in (("late", 425), ("unknown", 404)):
        begun = time.monotonic()
        error_of(client.get(f"{REQUESTS}/{asked}", params={"wait": "0.5"}), status)
        assert 0.4 < time.monotonic() - begun < 5


def test_many_wait_and_no_other_request_does(serve: Serve, hub: Hub, store: Path) -> None:
    hub.running.add("late")
    client = serve(store)
    before = threading.active_count()
    with ExitStack() as open_ones:
        request = f"GET {REQUESTS}/late?wait=3 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        waiting = [open_ones.enter_context(closing(connected(client, request))) for _ in range(100)]
        begun = time.monotonic()
        assert client.get("/health").status_code == 200
        assert client.get(f"{REQUESTS}/one").status_code == 200
        assert time.monotonic() - begun < 2
        assert threading.active_count() - before <= 4, "a thread of the port waits for each"
        assert all(read_all(one).startswith(b"HTTP/1.1 425 ") for one in waiting)
        assert time.monotonic() - begun > 2


def test_a_closing_port_answers_those_who_wait(serve: Serve, hub: Hub, store: Path) -> None:
    hub.running.add("late")
    client = serve(store)
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(client.get(f"{REQUESTS}/late", params={"wait": "25"})))
    waiting.start()
    time.sleep(0.5)
    begun = time.monotonic()
    client.port.close(10)
    assert time.monotonic() - begun < 3
    waiting.join()
    error_of(answers[0], 425)


def test_a_wrong_wait_is_one_line(serve: Serve, store: Path) -> None:
    client = serve(store)
    for wait in ("x", "-1", "31", "nan", "inf", "", "1&wait=2", "9" * 5000, "%00%1b[2J", "1e999"):
        text = error_of(client.get(f"{REQUESTS}/one?wait={wait}"), 400)
        assert text.endswith("is not allowed: use one number of seconds from 0 to 30"), wait


HOSTILE = (
    "a%00b", "%1b[2J", "..%2f..%2fetc%2fpasswd", "a/b", "%ff%fe", "' OR 1=1 --", "%0d%0aX-Bad: 1", "x" * 20_000,
    "%E2%80%AE", "one%", "%F4%8F%BF%BF", "😀", "",
)  # fmt: skip


def test_a_hostile_id_is_one_line(serve: Serve, store: Path) -> None:
    client = serve(store)
    for asked in HOSTILE:
        answer = client.get(httpx.URL(f"http://x{REQUESTS}/{asked}").raw_path.decode())
        assert error_of(answer, 404).startswith(("no request ", "no such path: ")), asked
        assert "X-Bad" not in answer.headers


def test_an_id_may_have_slashes(serve: Serve, store: Path, report: Make) -> None:
    write(store, report(request_id="chatcmpl-team/run/7"), number=5)
    assert serve(store).get(f"{REQUESTS}/team%2Frun/7").json()[0]["request_id"] == "chatcmpl-team/run/7"


def test_an_unprintable_id_is_valid_json(serve: Serve, store: Path, report: Make) -> None:
    write(store, report(request_id="chatcmpl-\x7f\u2028é"), number=5)
    answer = serve(store).get(f"{REQUESTS}/chatcmpl-%7F%E2%80%A8%C3%A9")
    assert answer.json()[0]["request_id"] == "chatcmpl-\x7f\u2028é"
    assert answer.text.replace("\n", "").isprintable()


# Paths, methods, errors


def test_an_unknown_path_is_404(serve: Serve) -> None:
    client = serve()
    for path in ("/", "/nothing", "/metrics/", "/corevital/v1/requests", "/%2F", "/health/x", "/%2e%2e"):
        assert "use /metrics, /health or /corevital/v1/requests/ID" in error_of(client.get(path), 404), path


@pytest.mark.parametrize("path", ["/metrics", "/health", f"{REQUESTS}/one"])
def test_only_get_and_head(serve: Serve, store: Path, path: str) -> None:
    client = serve(store)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"):
        answer = client.request(method, path, content=b"x" * 100 if method == "POST" else None)
        assert error_of(answer, 405) == "no such method here: use GET or HEAD"
        assert set(answer.headers["allow"].replace(" ", "").split(",")) == {"GET", "HEAD"}
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == get.headers["content-length"]


def test_an_error_inside_is_logged_without_the_request(
    serve: Serve, hub: Hub, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    monkeypatch.delenv("COREVITAL_RAISE")
    client = serve()
    hub.health = None
    text = error_of(client.get("/health", headers={"X-Secret": "1234567"}, params={"q": "1234567"}), 500)
    assert text.startswith("an error inside corevital")
    (record,) = logged()
    assert "error in the hub's HTTP port" in record.getMessage()
    assert "1234567" not in logging.Formatter().format(record)


def test_an_error_of_the_framework_is_logged(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    monkeypatch.delenv("COREVITAL_RAISE")
    monkeypatch.setattr("corevital_otel.http.access.Headers", None)  # calling it raises
    assert serve().get("/metrics").status_code == 500
    deadline = time.monotonic() + 5
    while not logged() and time.monotonic() < deadline:  # the answer is sent first
        time.sleep(0.01)
    (record,) = logged()
    assert "error in the hub's HTTP port" in record.getMessage()


# The token


WRONG_TOKENS = (
    None, "", "Bearer", "Bearer wrong-token-000000", "Basic the-right-token-123", "the-right-token-123",
    "Bearer the-right-token-12", "Bearer the-right-token-1234", "Bearer thé", "bearer the-right-token-123 x",
)  # fmt: skip


@pytest.mark.parametrize("path", ["/metrics", f"{REQUESTS}/one", "/nothing"])
def test_without_the_token_nothing_is_answered(serve: Serve, store: Path, path: str) -> None:
    client = serve(store, token="the-right-token-123")
    for given in WRONG_TOKENS:
        headers = [] if given is None else [(b"Authorization", given.encode())]
        answer = client.get(path, headers=headers)
        assert "COREVITAL_HTTP_TOKEN" in error_of(answer, 401), given
        assert answer.headers["www-authenticate"] == 'Bearer realm="corevital"'
        assert "the-right-token" not in answer.text


def test_with_the_token_everything_is(serve: Serve, store: Path) -> None:
    client = serve(store, token="the-right-token-123")
    assert client.get("/health").status_code == 200
    for scheme in ("Bearer", "bearer", "BEARER"):
        client.headers["Authorization"] = f"{scheme} the-right-token-123"
        assert client.get(f"{REQUESTS}/one").status_code == 200
        assert client.get("/metrics", headers={"Host": "any.example"}).status_code == 200
        assert client.post("/metrics").status_code == 405
        assert client.get("/nothing").status_code == 404


def test_without_a_token_a_web_page_cannot_ask_under_its_own_name(serve: Serve, store: Path) -> None:
    client = serve(store)
    for host in ("localhost", "localhost:8", "127.0.0.1", "[::1]:80", "127.9.9.9:1"):
        assert client.get(f"{REQUESTS}/one", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "evil.example:9464", "127.0.0.1.evil.example", "10.0.0.1", ""):
        answer = client.get(f"{REQUESTS}/one", headers={"Host": host})
        assert "ask 127.0.0.1, [::1] or localhost" in error_of(answer, 421), host
        assert client.get("/health", headers={"Host": host}).status_code == 200


def test_the_json_is_one_document(serve: Serve, store: Path) -> None:
    assert json.loads(serve(store).get(f"{REQUESTS}/one").content)[0]["series"]["entropy"][0] == 0
