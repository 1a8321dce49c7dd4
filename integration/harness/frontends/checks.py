"""What must hold after the mixed requests, whichever frontend they came through."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from integration.harness.frontends.mixed import Answer, Request, expected
from tests.harness.collector import Sink, Span

from corevital_otel.store.reader import StoredReport, StoreError, StoreReader

Reference = dict[str, Answer]
"""What the same model answers without corevital, by the request's name."""


@dataclass(frozen=True)
class Outcome:
    """All requests of one frontend, what their clients saw, and what corevital made of them."""

    requests: list[Request]
    answers: list[Answer]
    rows: list[StoredReport]
    spans: list[Span]

    def request(self, answer: Answer) -> Request:
        return next(request for request in self.requests if request.name == answer.name)

    def rows_of(self, answer: Answer) -> list[StoredReport]:
        """Its rows, by number of the sequence."""
        found = [row for row in self.rows if row.request_id == answer.request_id]
        return sorted(found, key=lambda row: row.sequence)


def gather(
    requests: list[Request], answers: list[Answer], sink: Sink, databases: list[Path], timeout_s: float = 40.0
) -> Outcome:
    """Wait until as many rows and spans are there as sequences were sent, and one second more for any excess."""
    total = expected(requests, answers).total()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and (len(_rows(databases)) < total or len(sink.spans) < total):
        time.sleep(0.2)
    time.sleep(1.0)
    return Outcome(requests, answers, _rows(databases), list(sink.spans))


def _rows(databases: list[Path]) -> list[StoredReport]:
    rows = []
    for database in databases:
        try:
            rows += StoreReader(database).list_reports(limit=10_000)
        except StoreError:  # none yet
            continue
    return rows


def check_exactly_once(outcome: Outcome) -> None:
    """Rows, spans and sequences are the same, each once, under the ids that the clients saw."""
    sent = expected(outcome.requests, outcome.answers)
    assert len(outcome.requests) == len(outcome.answers) == 100
    assert Counter(row.request_id for row in outcome.rows) == sent
    assert Counter(span.attributes["gen_ai.response.id"] for span in outcome.spans) == sent
    rows = {row.span_id: row for row in outcome.rows}
    assert len(rows) == len(outcome.rows)
    for span in outcome.spans:
        assert (span.attributes, span.trace_id) == (rows[span.span_id].summary, rows[span.span_id].trace_id)
    for answer in outcome.answers:
        if rows_of := outcome.rows_of(answer):
            assert [row.sequence for row in rows_of] == list(range(outcome.request(answer).sequences)), answer


def check_tokens_are_all_observed(outcome: Outcome, *, stop_strings_known: bool = True) -> None:
    """Each token that the client was charged for was measured, and no sequence is incomplete.

    Args:
        outcome: what happened.
        stop_strings_known: False where the frontend keeps stop strings to itself: the engine makes a few tokens more,
            until the abort reaches it.
    """
    for answer in outcome.answers:
        rows = outcome.rows_of(answer)
        for row in rows:
            assert "corevital.incomplete" not in row.summary, (answer, row)
            assert row.summary["corevital.tokens.observed"] == row.output_tokens, (answer, row)
        if rows and answer.output_tokens is not None and not outcome.request(answer).hangs_up:
            tokens = sum(row.output_tokens for row in rows)
            is_late = outcome.request(answer).stops_at_text and not stop_strings_known
            assert tokens == answer.output_tokens or (is_late and tokens > answer.output_tokens), answer


def check_ends(outcome: Outcome, *, stop_strings_known: bool = True) -> None:
    """Finish reasons are the client's.

    Args:
        outcome: what happened.
        stop_strings_known: False if the frontend does not pass stop strings on, so that a match looks like an abort.
    """
    stopped = hung_up = 0
    for answer in outcome.answers:
        request = outcome.request(answer)
        for row in outcome.rows_of(answer):
            assert ("truncated" in row.flags) == (row.finish_reason == "length"), (answer, row)
            seen = answer.finish_reasons.get(row.sequence)
            if request.hangs_up:
                hung_up += row.finish_reason == "abort"
                assert row.finish_reason in ("abort", "length"), "a hang-up may come too late"
            elif request.stops_at_text and seen == "stop":
                stopped += 1
                assert row.finish_reason in (("stop",) if stop_strings_known else ("stop", "abort", "length")), answer
            else:
                assert row.finish_reason == seen, (answer, row)
    assert stopped >= 5
    assert hung_up >= 4 or not any(request.hangs_up for request in outcome.requests)


def check_arguments(outcome: Outcome, *, refused: bool = True) -> None:
    """A wrong argument is refused or, if the frontend cannot refuse it, ignored; the others have their effect."""
    for answer in outcome.answers:
        request = outcome.request(answer)
        if request.wrong:
            assert bool(answer.refused) == refused, answer
            assert not refused or "corevital_capture='sometimes' is not allowed: use one of" in str(answer.refused)
        elif "corevital_tags" in request.arguments:
            (row,) = outcome.rows_of(answer)
            assert row.summary["corevital.capture"] == "full"
            assert list(row.summary["corevital.tags"]) == ["a", "b"]


def check_same_texts(outcome: Outcome, reference: Reference, *, cut: bool = True) -> None:
    """Greedy and seeded tokens are those of the engine alone.

    Args:
        outcome: what happened.
        reference: what the engine alone answers.
        cut: False where the client gets the tokens of a stop string, too.
    """
    compared = 0
    for answer in outcome.answers:
        if answer.refused is None and not outcome.request(answer).hangs_up:
            alone = reference[answer.name]
            if cut or not outcome.request(answer).stops_at_text:
                assert answer.texts == alone.texts, answer
            else:
                assert answer.texts[0].startswith(alone.texts[0]), answer
            assert answer.finish_reasons == alone.finish_reasons, answer
            compared += 1
    assert compared >= 80
