"""What runs now, distributions over time, and two slices side by side."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.harness import served
from tests.harness.processes import free_port

from corevital_otel.cli.live import LiveServer
from corevital_otel.report import Admission, RequestReport
from corevital_otel.store.listing import Filter
from corevital_otel.ui import application, trends

Browse = Callable[..., Any]
SERVER = Path(__file__).resolve().parents[1] / "cli" / "serve_metrics.py"


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_now_shows_a_running_server(store: Path, browse: Browse) -> None:
    port = free_port()
    server = subprocess.Popen([sys.executable, str(SERVER), str(port), "2", "5"])
    try:
        client = browse(store, live=LiveServer(f"127.0.0.1:{port}"))
        deadline = time.monotonic() + 20
        shown = ""
        while "tok/s 95th" not in shown and "In a loop 14" not in shown and time.monotonic() < deadline:
            time.sleep(0.3)
            shown = text_of(client.get("/now").text)
        assert "Running 10" in shown
        assert "In a loop 14" in shown
        assert "meta-llama/Llama-3.3-70B-Instruct-and-a-long-name" in shown
        time.sleep(1.1)
        page = client.get("/now", headers={"HX-Request-Type": "partial"}).text
        assert "<html" not in page
        assert "100 %" in text_of(page)  # all of its requests end at high risk
    finally:
        server.terminate()
        server.wait(10)


def test_now_without_a_server_is_one_line(store: Path, browse: Browse) -> None:
    port = free_port()
    for live, cause in ((None, "--url"), (LiveServer(f"127.0.0.1:{port}"), "no server answers")):
        answer = browse(store, live=live).get("/now")
        assert answer.status_code == 200
        (line,) = re.findall(r'role="alert">([^<]*)<', answer.text)
        assert cause in line


def test_each_column_links_to_its_requests(store: Path, browse: Browse) -> None:
    client = browse(store)
    page = client.get("/trends").text
    columns = re.findall(r'<a href="(/requests\?[^"]*)"><title>[^:]*:\d\d UTC: (\d+) requests', page)
    assert sum(int(count) for _, count in columns) == 120
    assert 20 < len(columns) <= trends.COLUMNS
    for link, count in columns[:3]:
        listed = client.get(link.replace("&amp;", "&")).text
        assert f"<b>{count}</b>" in listed


def test_distributions_follow_the_filters(store: Path, browse: Browse) -> None:
    client = browse(store)
    page = client.get("/trends?risk=high").text
    assert "Risk score" in page
    assert not re.search(r"<title>0 to 0.1 *:", page)
    assert "No requests match" in client.get("/trends?tag=nothing").text
    assert client.get("/trends?risk=x").status_code == 400


@pytest.mark.parametrize(
    "query", ["since=0001-01-01", "until=9999-12-31T23:59:59", "since=0001-01-01&until=9999-12-31"]
)
def test_any_time_can_be_drawn(store: Path, browse: Browse, query: str) -> None:
    answer = browse(store).get(f"/trends?{query}")
    assert answer.status_code == 200
    assert "120 requests" in answer.text


def test_ten_thousand_requests_over_time_within_a_second_of_cpu_time(large: Path, browse: Browse) -> None:
    client = browse(large)
    begun = time.process_time()
    assert "10,000 requests" in client.get("/trends").text
    assert time.process_time() - begun < 1


def test_a_slice_that_became_less_sure_is_worse(tmp_path: Path, browse: Browse) -> None:
    db = served.fill(tmp_path / "two.db", served.traffic(100, version="0.31.0"), version="0.31.0")
    served.fill(db, served.traffic(100, seed=2, shift=1.5))
    client = browse(db)
    form = client.get("/compare").text
    assert 'value="engine.version=0.31.0"' in form
    assert 'value="model=qwen3-8b"' in form
    shown = text_of(client.get("/compare?a=engine.version%3D0.31.0&b=engine.version%3D0.32.0").text)
    assert "B is worse" in shown
    assert "A: 100 requests. B: 100 requests." in shown
    same = text_of(client.get("/compare?a=engine.version%3D0.31.0&b=engine.version%3D0.31.0").text)
    assert "B is worse" not in same


@pytest.mark.parametrize(
    ("a", "line"),
    [
        ("nonsense", "is not a slice"),
        ("model=nobody", "has no requests"),
        ("x..y", "is not a time"),
        ("/etc/passwd@a=b", "is not a slice"),
    ],
)
def test_a_slice_without_a_meaning_is_one_line(store: Path, browse: Browse, a: str, line: str) -> None:
    answer = browse(store).get("/compare", params={"a": a, "b": "model=qwen3-8b"})
    assert answer.status_code == 400
    (error,) = re.findall(r'role="alert">([^<]*)<', answer.text)
    assert line in error
    assert "STORE" not in error, "a field takes a part of this store only"
    assert f'name="a" list="slices" value="{a}"' in answer.text
    assert 'name="b" list="slices" value="model=qwen3-8b"' in answer.text


@pytest.mark.parametrize(
    ("hours", "changes", "offered"),
    [
        ((1,), {}, ["the last 24 hours"]),
        ((30,), {}, ["the day before"]),
        ((1, 30), {}, ["the last 24 hours", "the day before"]),
        ((1, 30), {"admission": Admission(drawn=False)}, []),
        ((50,), {}, []),
    ],
)
def test_only_days_with_requests_are_offered(
    tmp_path: Path,
    browse: Browse,
    report: Callable[..., RequestReport],
    hours: tuple[int, ...],
    changes: dict[str, Any],
    offered: list[str],
) -> None:
    ends = [time.time_ns() - hour * 3600 * 10**9 for hour in hours]
    client = browse(served.fill(tmp_path / "days.db", [report(end_ns=end, **changes) for end in ends]))
    page = html.unescape(client.get("/compare").text)
    assert [day for day in ("the last 24 hours", "the day before") if f">{day}<" in page] == offered
    links = re.findall(r'<a href="([^"]*)">Compare the last 24 hours', page)
    assert len(links) == (len(offered) == 2)
    for link in links:
        assert client.get(link).status_code == 200


@pytest.mark.parametrize(
    ("seconds", "columns", "shown"),
    [
        (10, 20, ["19:45:10", "19:46:00", "19:46:50", "19:47:40"]),
        (60, 20, ["19:45", "19:48", "19:51", "19:54", "19:57", "20:00"]),
        (7200, 40, ["12-01 19:45", "12-02 15:45", "12-03 11:45", "12-04 07:45"]),
    ],
)
def test_no_time_of_the_axis_is_there_twice(seconds: int, columns: int, shown: list[str]) -> None:
    start = datetime(2026, 12, 1, 19, 45, 10 if seconds == 10 else 0, tzinfo=UTC)
    assert [text for _, text in trends._ticks(start, timedelta(seconds=seconds), columns)] == shown


def test_a_filter_of_nothing_allows_everything() -> None:
    assert Filter().where() == ("TRUE", [])


def test_an_installation_without_scripts_asks_for_none(
    store: Path, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "missing_scripts", lambda: ["htmx.min.js"])
    client = browse(store)
    for place in ("/requests", "/trends", "/now", "/compare"):
        page = client.get(place).text
        assert "vendor" not in page
        assert "/static/page.js" in page
