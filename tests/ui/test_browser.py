"""The page in a real Chromium: scripts, keyboard, both themes, hostile texts; nothing from any other host."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.harness import served
from tests.harness.chromium import CHROMIUM, browser, serving

from corevital.frames.lifecycle import CoreFacts
from corevital_otel.report import RequestReport, Risk
from corevital_otel.store.content import Content
from corevital_otel.store.listing import Filter, Listing
from corevital_otel.ui.application import Application
from corevital_otel.ui.pages import missing_scripts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium here: `make .venv/chromium/.unpacked` fetches it"),
    pytest.mark.skipif(bool(missing_scripts()), reason="no npm when corevital was installed: its page has no scripts"),
]
HOSTILE = "<img src=x onerror=window.ran=1><script>window.ran=1</script>"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.fill(tmp_path_factory.mktemp("browser") / "corevital.db", served.traffic(200))


@pytest.fixture(scope="module")
def url(store: Path) -> Iterator[str]:
    with serving(Application(store, None)) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture
def tab(chromium: Any, url: str) -> Iterator[Open]:
    """Opens a page. Afterwards: no other host was asked, and nothing was refused or failed."""
    wrong: list[str] = []

    def checked(route: Any) -> None:
        if urlsplit(route.request.url).hostname == "127.0.0.1":
            route.continue_()
        else:
            wrong.append(route.request.url)
            route.abort()

    contexts = []

    def begin(place: str, **options: Any) -> Any:
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.route("**/*", checked)
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append("a dialog"))
        page.goto(f"{url}{place}")
        return page

    yield begin
    for context in contexts:
        context.close()
    assert wrong == []


def test_filters_change_the_list_and_the_url_without_a_new_page(tab: Open, url: str, store: Path) -> None:
    page = tab("/requests")
    page.evaluate("document.body.dataset.same = 1")
    page.select_option("select[name=risk]", "high")
    page.wait_for_url(f"{url}/requests?risk=high")
    high = Listing(store).how_many(Filter(level="high"))
    page.wait_for_selector(f".count b:text-is('{high}')")
    assert page.locator(".requests .risk.high").count() == min(high, 50)
    assert page.locator(".requests .risk.low").count() == 0
    page.click("th a:has-text('tokens')")
    page.wait_for_url(f"{url}/requests?risk=high&sort=-tokens")
    assert page.evaluate("document.body.dataset.same") == "1"
    page.go_back()
    page.wait_for_selector("body:not([data-same])")  # htmx loads the page of that URL
    page.wait_for_url(f"{url}/requests?risk=high")
    page.evaluate("document.body.dataset.same = 1")
    page.go_back()
    page.wait_for_selector("body:not([data-same])")
    page.wait_for_selector(".count b:text-is('200')")
    assert page.input_value("select[name=risk]") == ""


def test_the_keyboard_is_enough(tab: Open) -> None:
    page = tab("/requests")
    page.keyboard.press("j")
    page.keyboard.press("j")
    second = page.locator(".requests .id a").nth(1)
    assert second.evaluate("link => link === document.activeElement")
    name = second.text_content()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"h1:has-text('{name}')")
    page.wait_for_load_state()
    page.keyboard.press("g")
    page.keyboard.press("t")
    page.wait_for_url("**/trends")
    page.keyboard.press("/")
    page.keyboard.type("chatcmpl-1")
    page.wait_for_url("**/trends?id=chatcmpl-1")
    page.reload()
    page.keyboard.press("/")
    page.keyboard.type("chatcmpl-2")
    page.wait_for_url("**/trends?id=chatcmpl-2")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#keys").evaluate("dialog => dialog.open")


def test_tokens_and_charts_follow_each_other(tab: Open, store: Path) -> None:
    (report, *_) = Listing(store).page(
        Filter(flag="repetition_loop_detected"), "tokens", descending=True, size=1, number=0
    )
    page = tab(f"/request?id={report.request_id}")
    page.wait_for_selector("#charts[data-drawn]")
    assert page.locator("#charts canvas").count() == 2
    assert page.locator("svg.plot").count() == 0
    onset = report.summary["corevital.health.loop_onset"]
    assert page.locator("#tokens li.onset").get_attribute("data-at") == str(onset)
    position = "line => getComputedStyle(line).position"
    assert page.locator("#token").evaluate(position) == "static", "an empty line would hide tokens"
    page.locator("#tokens").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#token").text_content().startswith("token 2 · surprisal")
    assert page.locator("#token").evaluate(position) == "sticky"
    page.wait_for_selector(".u-legend .u-value:text-is('2')")
    page.locator("#charts .u-over").first.hover(position={"x": 300, "y": 60})
    page.wait_for_selector("#token:not(:has-text('token 2 '))")


@pytest.fixture
def wide_numbers(tmp_path: Path, report: Callable[..., RequestReport]) -> Iterator[str]:
    """A page over requests of the last minutes; the newest has three tokens and long numbers, and was ended early."""
    made = report(tokens=3, end_ns=time.time_ns() + 10**9, model="an-organization/a-model-with-a-name-" + 8 * "as-long")
    features = dataclasses.replace(
        made.features, entropy_sum=234567.89, surprisal_mean=12.34, surprisal_max=23.45, surprisal_sum=234567.89
    )
    outcome = dataclasses.replace(made.outcome, core=CoreFacts(stop_reason="corevital:loop"))
    made = dataclasses.replace(made, features=features, outcome=outcome)
    db = served.fill(tmp_path / "wide.db", [*served.traffic(60), made])
    with serving(Application(db, None)) as address:
        yield address


def test_no_page_scrolls_sideways(tab: Open, wide_numbers: str) -> None:
    page = tab("/requests")
    too_wide = []
    since = datetime.now(UTC) - timedelta(minutes=3)
    models = f"a=model%3D{served.MODELS[0]}&b=model%3D{served.MODELS[1]}"
    for place in (
        "/requests", "/request?id=chatcmpl-1", "/trends", f"/trends?since={since:%Y-%m-%dT%H:%M:%S}", "/now",
        "/compare", f"/compare?{models}",
    ):  # fmt: skip
        page.goto(f"{wide_numbers}{place}")
        for width in (390, 700, 1280, 1440):
            page.set_viewport_size({"width": width, "height": 800})
            widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            if widths[0] > widths[1]:
                too_wide.append((place, width, widths[0]))
    assert too_wide == []


def test_the_hint_in_a_slice_s_field_is_not_cut(tab: Open) -> None:
    page = tab("/compare")
    shown = """fields => fields.map(field => {
        const style = getComputedStyle(field), pen = document.createElement("canvas").getContext("2d");
        pen.font = style.font;
        const place = field.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
        return place - pen.measureText(field.placeholder).width;
    })"""
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert min(page.locator("form.filters input").evaluate_all(shown)) > 0


def test_the_axis_of_a_short_output_counts_whole_tokens(tab: Open, wide_numbers: str) -> None:
    page = tab("/requests")
    page.add_init_script("""
        window.drawn = [];
        const own = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
            drawn.push([text, this.textAlign]);
            return own.call(this, text, ...place);
        };
    """)
    page.goto(f"{wide_numbers}/request?id=chatcmpl-1")
    page.wait_for_selector("#charts[data-drawn]")
    page.wait_for_function("drawn.length > 0")
    below = {text for text, align in page.evaluate("drawn") if align == "center" and re.match(r"\d", text)}
    assert below == {"0", "1", "2"}


def test_dark_and_light_are_the_system_s_or_chosen(tab: Open) -> None:
    page = tab("/requests", color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.click("#theme")
    light = page.evaluate(background)
    assert [sum(map(int, re.findall(r"\d+", colour)[:3])) > 380 for colour in (dark, light)] == [False, True]
    page.reload()
    assert page.evaluate(background) == light


def test_it_works_without_scripts(tab: Open, url: str, store: Path) -> None:
    page = tab("/requests", java_script_enabled=False)
    page.select_option("select[name=flag]", "repetition_loop_detected")
    page.click("button:has-text('Filter')")
    page.wait_for_url(f"{url}/requests?flag=repetition_loop_detected")
    page.locator(".requests .id a").first.click()
    assert page.locator("svg.plot polyline.entropy").count() >= 1
    assert page.locator("#tokens li").count() > 1


def test_hostile_texts_run_nothing(tab: Open, url: str, store: Path, report: Callable[..., RequestReport]) -> None:
    made = report(request_id=HOSTILE, model=HOSTILE, risk=Risk(score=0.9, level="high", factors=(HOSTILE,)), tokens=90)
    end = time.time_ns() + 10**9
    made = dataclasses.replace(
        made,
        admitted=dataclasses.replace(made.admitted, tags=(HOSTILE,)),
        outcome=dataclasses.replace(made.outcome, end_ns=end),
    )
    served.fill(store, [made])
    page = tab("/requests")
    page.wait_for_selector(".requests .id a")
    page.locator(".requests .id a").first.click()
    page.wait_for_selector("#charts[data-drawn]")
    assert HOSTILE in page.locator("h1").text_content()
    for place in ("/now", "/trends", "/compare"):
        page.goto(f"{url}{place}")
        page.wait_for_selector("h1", state="attached")
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_stored_text_is_read_with_the_keyboard_and_runs_nothing(
    chromium: Any, tmp_path: Path, report: Callable[..., RequestReport], scheme: str
) -> None:
    made = report(tokens=40, risk=Risk(score=0.9, level="high"))
    text = Content(("A", " safe", HOSTILE, *(" word" for _ in range(37))), (((HOSTILE, 0.5), ("b", 0.25)),) * 40, 40)
    db = served.fill(tmp_path / "text.db", [made], text=lambda _: text)
    with serving(Application(db, None)) as address:
        page = chromium.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page.goto(f"{address}/request?id=chatcmpl-1")
        page.wait_for_selector("#charts[data-drawn]")
        assert page.locator("#tokens").text_content().strip().startswith(f"A safe{HOSTILE} word word")
        page.locator("#tokens").focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        line = page.locator("#token").text_content()
        assert line.startswith("token 2 “<img src=x")
        assert line.endswith("“b” 25.0%")
        page.locator("#tokens li").nth(1).hover()
        assert page.locator("#token").text_content().startswith("token 1 “ safe”")
        assert page.evaluate("window.ran") is None
        styles = "token => { const its = getComputedStyle(token); return [its.color, its.backgroundColor] }"
        for token in (0, 39):
            ink, ground = page.locator("#tokens li").nth(token).evaluate(styles)
            assert ink != ground
        page.close()
