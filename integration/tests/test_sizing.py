"""The sizing command: its figures grow with what they are of."""

from __future__ import annotations

from integration.bench import sizing


def test_series_grow_with_models_and_not_with_traffic() -> None:
    (start, one, _), (_, two, _) = sizing.pages(1, 2)
    assert 100 < start < one < two < 2 * one


def test_a_span_grows_with_its_series_alone() -> None:
    short, long = (sizing.span_bytes(tokens, series=False) for tokens in (50, 1000))
    assert abs(long - short) < 20
    assert sizing.span_bytes(1000, series=True) - long > 4 * 8 * 1000  # four doubles a token


def test_a_row_takes_what_the_store_writes() -> None:
    plain, full = (sizing.row_bytes(1000, 100, series=series) for series in (False, True))
    assert 2_000 < plain < 8_000
    assert plain + 4 * 1000 < full < plain + 4 * 4 * 1000 + 4096
