"""Requests whose rows are not in the store yet, by id, for those who ask for one by it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_LATELY: Final = 256
"""Reported requests whose rows may still wait for the store."""


class OpenRequests:
    """From a request's admission until its row is stored.

    Args:
        runs: whether a request with this id is being measured.
        stores: whether rows wait for the store.
    """

    def __init__(self, runs: Callable[[str], bool], stores: Callable[[], bool]) -> None:
        self._runs = runs
        self._stores = stores
        self._coming: dict[int, str] = {}  # ids of admitted requests whose events wait, by key
        self._lately: deque[str] = deque(maxlen=_LATELY)
        self._is_reporting = False

    def __contains__(self, request_id: str) -> bool:
        """Any thread may ask."""
        if request_id in list(self._coming.values()) or self._runs(request_id):
            return True
        return (self._is_reporting or self._stores()) and request_id in list(self._lately)

    def coming(self, key: int, request_id: str) -> None:
        """A sequence is about to be measured."""
        self._coming[key] = request_id

    @contextmanager
    def arriving(self, key: int) -> Iterator[None]:
        """Its measurement begins within."""
        try:
            yield
        finally:
            del self._coming[key]

    @contextmanager
    def reporting(self, request_id: str) -> Iterator[None]:
        """Its row is handed to the store within."""
        self._is_reporting = True
        self._lately.append(request_id)
        try:
            yield
        finally:
            self._is_reporting = False
