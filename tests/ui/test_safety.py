"""Hostile ids, models and tags run no script; who may see the page; and what it answers where it cannot answer."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import URL
from starlette.requests import Request
from tests.harness import served
from tests.harness.seen import Seen

from corevital_otel.report import RequestReport, Risk
from corevital_otel.ui.access import COOKIE
from corevital_otel.ui.application import Application
from corevital_otel.ui.pages import FOLDER

Browse = Callable[..., Any]
One = Callable[..., Path]

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "a/../../etc/passwd?x=1&y=2#z",
    "\u202eevil\x1b[2J\nline",
    "x" * 300,
)
PAGES = ("/requests", "/request?id=chatcmpl-1")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_run_nothing(
    text: str, tmp_path: Path, browse: Browse, report: Callable[..., RequestReport]
) -> None:
    made = report(request_id=text, model=text, reason=text, risk=Risk(score=0.9, level="high", factors=(text,)))
    made = dataclasses.replace(made, admitted=dataclasses.replace(made.admitted, tags=(text,), engine=text))
    db = served.fill(tmp_path / "hostile.db", [made])
    client = browse(db)
    listed = client.get("/requests")
    (link,) = (link for link in Seen(listed.text).links if link.startswith("/request?"))
    shown = client.get(link)
    filtered = client.get("/requests", params={"id": text[:100], "tag": text[:60], "model": text[:60]})
    unknown = client.get("/request", params={"id": f"?{text}"})
    assert [answer.status_code for answer in (listed, shown, filtered, unknown)] == [200, 200, 200, 404]
    for answer in (listed, shown, filtered, unknown):
        seen = Seen(answer.text)
        assert all(script.startswith("/static/") for script in seen.scripts)
        assert all(re.match(r"/(?!/)|#main$", place) for place in seen.loaded + seen.links)
        assert seen.handlers == []
        assert "img" not in seen.elements
        assert "\u202e" not in seen.text
        assert "\x1b" not in seen.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"


def test_no_template_turns_escaping_off_for_a_value() -> None:
    for file in (FOLDER / "templates").glob("*.html"):
        uses = re.findall(r"\{\{[^}]*\|\s*safe[^}]*\}\}", file.read_text())
        assert set(uses) <= {"{{ swap | safe }}"}, file
        assert "autoescape" not in file.read_text()


def test_our_own_files_name_no_other_host() -> None:
    for file in FOLDER.rglob("*"):
        if file.suffix in (".html", ".css", ".js") and "vendor" not in file.parts:
            assert not re.search(r"(?:https?:)?//\w+\.\w", re.sub(r"(?m)^\s*//.*$", "", file.read_text())), file


def test_without_a_token_only_this_machine_may_ask(store: Path, browse: Browse) -> None:
    client = browse(store)
    for host, status in (("127.0.0.1:8765", 200), ("localhost:8765", 200), ("[::1]:8765", 200), ("evil.example", 421)):
        assert client.get("/requests", headers={"host": host}).status_code == status
    assert "COREVITAL_HTTP_TOKEN" in client.get("/requests", headers={"host": "evil.example"}).text


def test_with_a_token_a_page_needs_it(store: Path, browse: Browse) -> None:
    client = browse(store, "secret-token")
    for place in PAGES:
        answer = client.get(place)
        assert answer.status_code == 401
        assert "enter the value of COREVITAL_HTTP_TOKEN" in answer.text
        assert "chatcmpl-" not in answer.text.replace("id=chatcmpl-1", "")
    assert client.get("/requests", headers={"Authorization": "Bearer secret-token"}).status_code == 200
    assert client.get("/requests", headers={"Authorization": "Bearer other"}).status_code == 401
    assert client.get("/static/page.css").status_code == 200
    client.cookies.set(COOKIE, "secret-token")
    assert client.get("/requests").status_code == 401


HOSTS = (b"x/static/?", b"x/static/#", b"[", b"x/sign-in?", b"@/static/", b"")


def ask(application: Any, path: str, host: bytes, method: str = "GET") -> tuple[int, str]:
    """The answer to a request whose Host header no client library would send."""
    sent: list[Any] = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"risk=high",
        "headers": [(b"host", host)], "client": ("192.0.2.1", 1), "server": ("192.0.2.2", 8765),
    }  # fmt: skip

    received = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return received.pop() if received else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_header_opens_nothing(one: One, host: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    # the first supported version of Starlette makes the URL of the header as it stands
    monkeypatch.setattr(Request, "url", property(lambda self: URL(f"http://{host.decode()}{self.scope['path']}")))
    db = one()
    application = Application(db, "secret-token")
    for place in ("/requests", "/request", "/series", "/report", "/now", "/trends", "/compare"):
        status, page = ask(application, place, host)
        assert status == 401, place
        assert f'name="next" value="{place}?risk=high"' in page
    assert ask(application, "/static/page.css", host)[0] == 200
    assert ask(application, "/sign-in", host, "POST")[0] == 401
    assert ask(Application(db, None), "/requests", host)[0] == 421


@pytest.mark.parametrize("other", ['prefs={"a":1}', "a=b=c", "bad key=1", '"'])
def test_cookies_of_others_do_not_hide_the_session(one: One, browse: Browse, other: str) -> None:
    client = browse(one(), "secret-token")
    client.post("/sign-in", data={"token": "secret-token"})
    session = client.cookies[COOKIE]
    client.cookies.clear()
    for cookies in (f"{other}; {COOKIE}={session}", f"{COOKIE}={session}; {other}"):
        assert client.get("/requests", headers={"Cookie": cookies}).status_code == 200
    assert client.get("/requests", headers={"Cookie": f"{other}; {COOKIE}=x"}).status_code == 401


def test_a_header_of_a_proxy_does_not_hide_the_session(one: One, browse: Browse) -> None:
    client = browse(one(), "secret-token")
    header = {"Authorization": "Basic dXNlcjpwYXNz"}
    assert client.get("/requests", headers=header).status_code == 401
    client.post("/sign-in", data={"token": "secret-token"})
    assert client.get("/requests", headers=header).status_code == 200


def test_a_script_without_a_session_loads_the_page_again(one: One, browse: Browse) -> None:
    client = browse(one(), "secret-token")
    for place in ("/now", "/requests?risk=high", "/trends"):
        answer = client.get(place, headers={"HX-Request": "true", "HX-Request-Type": "partial"})
        assert (answer.status_code, answer.headers["hx-refresh"]) == (401, "true")
        assert "<form" not in answer.text
        assert "<html" not in answer.text
        whole = client.get(place)
        assert "hx-refresh" not in whole.headers
        assert "<form" in whole.text


def test_signing_in_leads_back_and_puts_the_token_into_no_url(store: Path, browse: Browse) -> None:
    client = browse(store, "secret-token")
    wrong = client.post("/sign-in", data={"token": "guess", "next": "/requests"})
    assert wrong.status_code == 401
    assert "the token is wrong" in wrong.text
    right = client.post(
        "/sign-in", data={"token": "secret-token", "next": "/requests?risk=high"}, follow_redirects=False
    )
    assert (right.status_code, right.headers["location"]) == (303, "/requests?risk=high")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secret-token" not in cookie
    assert client.get("/requests").status_code == 200
    assert client.post("/sign-in", data={"token": "x" * 10_000}).status_code == 413


@pytest.mark.parametrize(
    "place", ["//evil.example", "/\\evil.example", "https://evil.example", "", "/sign-in", "/a\r\nb"]
)
def test_signing_in_never_leads_to_another_host(store: Path, browse: Browse, place: str) -> None:
    answer = browse(store, "t").post("/sign-in", data={"token": "t", "next": place}, follow_redirects=False)
    assert answer.headers["location"] == "/"


def test_a_store_of_another_version_is_one_line(store: Path, browse: Browse) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    answer = browse(store).get("/requests")
    assert answer.status_code == 503
    assert "has schema 99" in answer.text
    assert "upgrade corevital" in answer.text
    assert "start `corevital ui` with another --db" in answer.text


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path, browse: Browse) -> None:
    answer = browse(tmp_path / "none.db").get("/requests")
    assert answer.status_code == 404
    assert "there is no store" in answer.text
    assert not (tmp_path / "none.db").exists()


def test_paths_and_methods_that_are_not_there(store: Path, browse: Browse) -> None:
    client = browse(store)
    assert client.get("/nothing").status_code == 404
    assert client.get("/static/../application.py").status_code == 404
    assert client.get("/static/%2e%2e/application.py").status_code == 404
    assert client.post("/requests").status_code == 405
    assert "there is no such page" in client.get("/nothing").text
