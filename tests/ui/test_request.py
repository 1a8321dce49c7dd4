"""One request: what it says in words, its tokens, and what it answers where there is nothing to show."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.harness import served

from corevital.frames.lifecycle import CoreFacts, Segment
from corevital_otel.report import Assessed, Features, Health, Part, RequestReport, Risk, Segments, Series
from corevital_otel.store import decode
from corevital_otel.store.content import Content
from corevital_otel.ui.request import TraceLink
from corevital_otel.ui.tokens import TOKENS

Browse = Callable[..., Any]
One = Callable[..., Path]


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))


def test_it_explains_score_factors_and_flags(one: One, browse: Browse) -> None:
    db = one(
        tokens=80,
        risk=Risk(score=0.82, level="high", factors=("mean entropy 2.4 bits", "closest margin 0.01")),
        health=Health(repetition_loop_detected=True, loop_onset=30, loop_period=7),
    )
    shown = text_of(browse(db).get("/request?id=chatcmpl-1").text)
    for part in (
        "0.82 high", "not calibrated on this model", "mean entropy 2.4 bits", "closest margin 0.01",
        "first token 250 ms",
        "repetition loop: from token 30 on, the same 7 tokens repeat", "7 in, 80 out", "temperature 0.5",
        "vllm 0.32.0 v1",
    ):  # fmt: skip
        assert part in shown, part


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("corevital:loop", "stop (corevital:loop)"), ("</s>", "stop"), ("2", "stop"), (None, "stop")],
)
def test_what_corevital_ended_early_shows_its_stop_reason(
    one: One, browse: Browse, report: Callable[..., RequestReport], reason: str | None, finish: str
) -> None:
    outcome = dataclasses.replace(report().outcome, core=CoreFacts(stop_reason=reason))
    client = browse(one(outcome=outcome))
    assert f"finish: {finish} tokens" in text_of(client.get("/request?id=chatcmpl-1").text)
    listed = text_of(client.get("/requests").text)
    assert ("stop corevital:loop" in listed) == ("corevital" in finish)


def test_it_names_the_parts_of_the_output_and_which_the_risk_is_of(
    tmp_path: Path, report: Callable[..., RequestReport], browse: Browse
) -> None:
    numbers = {"tokens": 2, "entropy_mean": 0.125, "surprisal_mean": 0.0625}
    assessed = Assessed(segment="answer", features=Features(**numbers))  # type: ignore[arg-type]
    parts = Segments(reasoning=Part(tokens=7), answer=Part(**numbers), assessed=assessed)  # type: ignore[arg-type]
    db = served.fill(tmp_path / "parts.db", [dataclasses.replace(report(), segments=parts)])
    shown = text_of(browse(db).get("/request?id=chatcmpl-1").text)
    assert "reasoning 7 tokens answer 2 tokens, entropy 0.125 bits, surprisal 0.0625 bits; the risk is of this" in shown
    plain = served.fill(tmp_path / "plain.db", [report()])
    assert "Parts of the output" not in text_of(browse(plain).get("/request?id=chatcmpl-1").text)


def test_a_seed_has_all_its_digits(one: One, browse: Browse, report: Callable[..., RequestReport]) -> None:
    admitted = dataclasses.replace(report().admitted, seed=1234567890, max_tokens=10_000_000, temperature=0.5)
    shown = text_of(browse(one(admitted=admitted)).get("/request?id=chatcmpl-1").text)
    assert "seed 1234567890" in shown
    assert "max_tokens 10000000" in shown
    assert "temperature 0.5" in shown


def test_its_tokens_are_coloured_by_surprisal_and_the_loop_is_marked(one: One, browse: Browse) -> None:
    values = np.array([0.01, 9.0, 2.5, np.nan], np.float32)
    series = Series(entropy=values, surprisal=values, margin=values, topk_mass=values)
    db = one(tokens=4, series=series, health=Health(repetition_loop_detected=True, loop_onset=2, loop_period=1))
    client = browse(db)
    page = client.get("/request?id=chatcmpl-1").text
    assert re.findall(r'<li class="([\w ]+)" title', page) == ["s0", "s8", "s4 loop onset", "unknown loop"]
    assert "token 1 · surprisal 9.00 · entropy 9.00 bits" in page
    assert 'class="onset" x1="666.7"' in page
    found = client.get("/series?id=chatcmpl-1").json()
    assert found["onset"] == 2
    assert found["series"]["entropy"][-1] is None


def test_a_long_output_comes_in_parts(one: One, browse: Browse) -> None:
    client = browse(one(tokens=2 * TOKENS + 5))
    counts = [
        client.get(f"/request?id=chatcmpl-1&from={start}").text.count("data-at=") for start in (0, TOKENS, 2 * TOKENS)
    ]
    assert counts == [TOKENS, TOKENS, 5]


def test_sequences_of_one_request_lead_to_each_other(
    tmp_path: Path, report: Callable[..., RequestReport], browse: Browse
) -> None:
    db = served.fill(tmp_path / "two.db", [report(tokens=4), report(sequence=1, tokens=5)])
    page = browse(db).get("/request?id=chatcmpl-1&sequence=1").text
    assert "7 in, 5 out" in page
    (others, _) = re.findall(r'class="sibling \w+" href="([^"]*)"', page)
    assert "7 in, 4 out" in browse(db).get(html.unescape(others)).text


def test_a_repeated_id_opens_the_request_that_was_chosen(
    tmp_path: Path, report: Callable[..., RequestReport], browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = served.fill(tmp_path / "same.db", [report(tokens=tokens, end_ns=tokens * 10**9) for tokens in (5, 6, 8)])
    client = browse(db)
    links = [html.unescape(link) for link in re.findall(r'class="id"><a href="([^"]*)"', client.get("/requests").text)]
    decoded: list[bool] = []
    unpacked = decode.unpacked

    def counted(packed: object) -> Series | None:
        decoded.append(packed is not None)
        return unpacked(packed)

    monkeypatch.setattr(decode, "unpacked", counted)
    for link, tokens in zip(links, (8, 6, 5), strict=True):
        decoded.clear()
        page = client.get(link).text
        assert f"7 in, {tokens} out" in page
        assert sum(decoded) == 1, "the series of others are not needed"
        (series,) = re.findall(r'data-url="([^"]*)"', page)
        assert len(client.get(html.unescape(series)).json()["series"]["entropy"]) == tokens
        (current,) = re.findall(r'href="([^"]*)" title="[^"]*" aria-current="true">#0<', page)
        assert html.unescape(current) == link
    assert "7 in, 8 out" in client.get("/request?id=chatcmpl-1").text  # without a span: the newest
    assert len(client.get("/report?id=chatcmpl-1").json()) == 3
    assert client.get("/request?id=chatcmpl-1&span=0000000000000009").status_code == 404


def test_a_client_s_own_id_finds_its_request(one: One, browse: Browse) -> None:
    assert browse(one()).get("/request?id=1").status_code == 200


@pytest.mark.parametrize("changes", [{"series": None, "capture": "summary"}, {"series": None, "tokens": 0}])
def test_without_a_series_the_page_explains_it(one: One, browse: Browse, changes: dict[str, Any]) -> None:
    db = one(**changes)
    shown = text_of(browse(db).get("/request?id=chatcmpl-1").text)
    assert ("capture mode summary did not keep it" in shown) != ("ended before its first token" in shown)
    assert browse(db).get("/series?id=chatcmpl-1").status_code == 404


def test_the_trace_is_linked_where_a_backend_is_named(one: One, browse: Browse) -> None:
    link = TraceLink("http://jaeger.example:16686/trace/{trace_id}?uiFind={span_id}")
    db = one()
    page = browse(db, link=link).get("/request?id=chatcmpl-1").text
    (found,) = browse(db).get("/report?id=chatcmpl-1").json()
    assert f'href="http://jaeger.example:16686/trace/{found["trace_id"]}?uiFind={found["span_id"]}"' in page
    assert "jaeger" not in browse(db).get("/request?id=chatcmpl-1").text


def test_an_unknown_id_is_one_line(one: One, browse: Browse) -> None:
    client = browse(one())
    for place in (
        "/request?id=nobody",
        "/request",
        "/series?id=nobody",
        "/report?id=nobody",
        "/request?id=chatcmpl-1&sequence=7",
    ):
        answer = client.get(place)
        assert answer.status_code == 404
        assert len(re.findall('role="alert">', answer.text)) == 1, place
    assert client.get("/request?id=chatcmpl-1&from=x").status_code == 400


def test_the_report_is_the_json_of_show(one: One, browse: Browse) -> None:
    (found,) = browse(one()).get("/report?id=chatcmpl-1").json()
    assert found["request_id"] == "chatcmpl-1"
    assert found["summary"]["corevital.risk_score"] == 0.25


def test_every_number_may_be_missing(one: One, browse: Browse, report: Callable[..., RequestReport]) -> None:
    made = report()
    admitted = dataclasses.replace(made.admitted, temperature=None, top_p=None, max_tokens=None, seed=None, top_k=None)
    db = one(features=Features(), risk=Risk(score=None, level="unknown"), series=None, admitted=admitted)
    shown = text_of(browse(db).get("/request?id=chatcmpl-1").text)
    assert "No score: too few tokens." in shown


HOSTILE_TEXT = "</li><script>window.ran=1</script>"
TEXT = Content(
    ("Hello", " wörld\n", "", HOSTILE_TEXT, "\u202e\x1b[2J"),
    ((("Hello", 0.5), (HOSTILE_TEXT, 0.25)), ((" wörld\n", 1.0),)),
    7,
    (Segment("reasoning", 1, 2), Segment("mark", 2, 3), Segment("tool_call", 3, 9)),
)


def with_text(tmp_path: Path, report: RequestReport, text: Content = TEXT) -> Path:
    return served.fill(tmp_path / "text.db", [report], text=lambda _: text)


def tokens_of(page: str) -> list[tuple[str, str, str]]:
    """The class, the line and the text of each token."""
    found = re.findall(r'<li class="([^"]*)" title="([^"]*)" data-at="\d+">(.*?)</li>', page, re.DOTALL)
    return [(style, html.unescape(about), html.unescape(text)) for style, about, text in found]


def test_stored_text_is_coloured_with_alternatives_segments_and_the_loop(
    tmp_path: Path, report: Callable[..., RequestReport], browse: Browse
) -> None:
    values = np.array([0.01, 9.0, 2.5, np.nan, 0.2], np.float32)
    series = Series(entropy=values, surprisal=values, margin=values, topk_mass=values)
    looping = Health(repetition_loop_detected=True, loop_onset=4, loop_period=1)
    db = with_text(tmp_path, report(tokens=5, series=series, health=looping))
    page = browse(db).get("/request?id=chatcmpl-1").text
    found = tokens_of(page)
    assert [style for style, *_ in found] == [
        "s0",
        "s8 reasoning",
        "s4",
        "unknown tool_call",
        "s1 tool_call loop onset",
    ]
    assert [text for *_, text in found] == ["Hello", " wörld\n", "<i>▫</i>", HOSTILE_TEXT, "\\u202e\\x1b[2J"]
    assert found[0][1] == (
        "token 0 “Hello” · surprisal 0.01 · entropy 0.01 bits · margin 0.01 · likeliest: “Hello” 50.0%, "
        f"“{HOSTILE_TEXT}” 25.0%"
    )
    assert found[1][1].endswith(r"likeliest: “ wörld\n” 100.0%")
    assert "(part of a character)" in found[2][1]
    shown = text_of(page)
    for part in ("The store has the text of the first 5 tokens", "reasoning", "tool calls", "the loop starts, token 4"):
        assert part in shown, part
    assert "<script>window" not in page


def test_stored_text_is_in_no_url_and_no_json(
    tmp_path: Path, report: Callable[..., RequestReport], browse: Browse
) -> None:
    client = browse(with_text(tmp_path, report(tokens=5)))
    links = re.findall(r'(?:href|src|data-url|action)="([^"]*)"', client.get("/request?id=chatcmpl-1").text)
    assert links
    assert not [link for link in links if "Hello" in link or "window" in link]
    for place in ("/requests", "/series?id=chatcmpl-1", "/report?id=chatcmpl-1", "/trends"):
        assert "Hello" not in client.get(place).text, place


def test_text_without_a_series_is_shown_without_colours(
    tmp_path: Path, report: Callable[..., RequestReport], browse: Browse
) -> None:
    page = browse(with_text(tmp_path, report(tokens=5, series=None))).get("/request?id=chatcmpl-1").text
    assert [style.split()[0] for style, *_ in tokens_of(page)] == ["unknown"] * 5
    assert "No per-token series: capture mode" in text_of(page)


def test_without_text_the_page_names_the_setting(one: One, browse: Browse) -> None:
    page = browse(one(tokens=3)).get("/request?id=chatcmpl-1").text
    assert [text for *_, text in tokens_of(page)] == ["", "", ""]
    assert "COREVITAL_DB_CONTENT=1 keeps that of requests at high risk or with a flag" in text_of(page)


def test_long_text_comes_in_parts_that_go_on_without_text(
    tmp_path: Path, report: Callable[..., RequestReport], browse: Browse
) -> None:
    text = Content(tuple(f"w{at} " for at in range(TOKENS + 1)), (), TOKENS + 3)
    client = browse(with_text(tmp_path, report(tokens=TOKENS + 3), text))
    found = tokens_of(client.get(f"/request?id=chatcmpl-1&from={TOKENS}").text)
    assert [text for *_, text in found] == [f"w{TOKENS} ", "<i>▫</i>", "<i>▫</i>"]
