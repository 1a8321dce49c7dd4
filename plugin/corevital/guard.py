"""No error of ours may fail a request: every entry from the engine into our code goes through :func:`guarded`.

On an exception None is returned, the error is counted, and the first one of each place is logged with its traceback.
Under the tests (``COREVITAL_RAISE=1``) it is raised again.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from corevital.log import warn_once

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.Lock()
_faults = 0


def faults() -> int:
    """Exceptions swallowed in this process so far."""
    return _faults


def swallow(place: str) -> None:
    """Count and log the exception being handled. Call from an ``except`` block."""
    global _faults  # noqa: PLW0603 - a count of the whole process
    with _lock:
        _faults += 1
    warn_once(
        f"fault:{place}",
        "error in %s: request unaffected; further errors there are only counted",
        place,
        exc_info=True,
    )
    if os.environ.get("COREVITAL_RAISE") == "1":
        raise  # noqa: PLE0704 - re-raises what the caller's except block is handling


def guarded(place: str) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Decorate an entry point of ours so that no exception leaves it; it returns None then."""

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return function(*args, **kwargs)
            except Exception:
                swallow(place)
                return None

        return call

    return decorate
