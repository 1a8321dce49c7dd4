"""``/corevital/v1/requests/{id}``: a request's report, on the hub's own port and on the engine's server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from corevital.text import printable
from corevital_otel.http import answers
from corevital_otel.store.lookup import document, several
from corevital_otel.store.reader import EmptyStoreError, StoreError, StoreReader, ids_of

PATH: Final = "/corevital/v1/requests/{id:path}"
LONGEST_WAIT_S: Final = 30.0
"""How long a request may wait for a report."""
_POLL_S: Final = 0.1, 0.5
"""Between two looks: initially, and at most."""
_READERS: Final = 4
"""Threads that read the store at a time."""
_SHOWN: Final = 100
"""Characters that are shown of an id or a value."""


class Reports:
    """Answers with the report of one request. Nothing here waits in the event loop's thread.

    Args:
        is_running: whether a request with this id runs, until its last row can be read from the store; called in the
            event loop's thread, so it must not block.
        db: the store's file; None: there is none.
    """

    def __init__(self, is_running: Callable[[str], bool], db: Path | None) -> None:
        self._is_running = is_running
        self._db = db
        self._readers = CapacityLimiter(_READERS)
        self.closing = False
        """No request waits any longer."""

    async def answer(self, request: Request) -> Response:
        """The answer to a request for the report of ``id`` in its path, after ``wait`` seconds at most.

        Raises:
            HTTPException: ``wait`` is not a number from 0 to 30.
        """
        request_id, clock = request.path_params["id"], asyncio.get_running_loop().time
        end = clock() + _wait_s(request)
        pause, longest = _POLL_S
        while True:
            found = await self._report(request_id)
            left = end - clock()
            if found.status_code not in (404, 425) or left <= 0 or self.closing or await request.is_disconnected():
                return found
            await asyncio.sleep(min(pause, left))
            pause = min(1.5 * pause, longest)

    async def _report(self, request_id: str) -> Response:
        shown = printable(repr(request_id[:_SHOWN]))
        if any(map(self._is_running, ids_of(request_id))):
            return answers.error(425, f"request {shown} is running: ask later, or with ?wait=SECONDS")
        db = self._db
        if db is None:
            return answers.error(404, "there is no store: set COREVITAL_DB")
        return await to_thread.run_sync(
            lambda: _stored(db, request_id, shown), limiter=self._readers, abandon_on_cancel=True
        )


def _stored(db: Path, request_id: str, shown: str) -> Response:
    """The report of one whole id: the start of one could be another request's, which is there earlier."""
    try:
        reports = StoreReader(db).get_whole(request_id)
    except EmptyStoreError:
        reports = []
    except StoreError:
        return answers.error(503, "the store cannot be read: `corevital doctor` shows why")
    if ids := several(reports):
        return answers.error(409, f"{shown} stands for several requests: use one of {ids}")
    if not reports:
        return answers.error(404, f"no request {shown} in the store: `corevital spans` lists all")
    return answers.text(document(reports))


def _wait_s(request: Request) -> float:
    """The longest time to wait, in seconds.

    Raises:
        HTTPException: it is not a number from 0 to 30.
    """
    given = request.query_params.getlist("wait")
    try:
        seconds = float(given[-1]) if given else 0.0
    except ValueError:
        seconds = math.nan
    if len(given) > 1 or not 0 <= seconds <= LONGEST_WAIT_S:
        shown = printable(repr(",".join(given)[:_SHOWN]))
        raise HTTPException(400, f"wait={shown} is not allowed: use one number of seconds from 0 to 30")
    return seconds
