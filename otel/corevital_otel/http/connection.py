"""One connection to the hub's port: one request, within a bound of time. A client that stops holds nothing for long."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from corevital_otel.http import answers
from corevital_otel.http.reports import LONGEST_WAIT_S

MOST: Final = 256
"""Connections at a time; further ones are closed."""
REQUEST_S: Final = 10.0
"""How long a client may take for its request."""
ANSWER_S: Final = LONGEST_WAIT_S + 30.0
"""How long it may take from there to the end of the answer."""


class Connection(H11Protocol):
    """uvicorn's connection with bounds. It never keeps alive: see :data:`corevital_otel.http.port.HEADERS`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._bound: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        if len(self.connections) > MOST:
            transport.abort()
        else:
            self._bound = self.loop.call_later(REQUEST_S, self._request_over)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._bound is not None:
            self._bound.cancel()
        super().connection_lost(exc)

    def _request_over(self) -> None:
        if self.cycle is None:
            self.transport.abort()
        else:
            self._bound = self.loop.call_later(ANSWER_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or too long."""
        answer = answers.error(400, "the request is not valid HTTP, or is too long")
        try:
            head = h11.Response(status_code=400, headers=[*answer.raw_headers, (b"connection", b"close")])
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer has begun
            self.transport.abort()
        else:
            self.transport.close()
