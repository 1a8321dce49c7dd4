"""Helpers of the store's tests."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corevital_otel.spans.record import SpanIds


def ids(number: int, *, exported: bool = False) -> SpanIds:
    return SpanIds(f"{number + 1:032x}", f"{number + 1:016x}", None, exported)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=20, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def query(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    with opened(path) as connection:
        return connection.execute(statement, values).fetchall()


@pytest.fixture
def warnings(logged: Callable[[], list[logging.LogRecord]]) -> Callable[[], list[str]]:
    """The store's warnings so far."""
    return lambda: [record.message for record in logged() if record.name == "corevital.store"]
