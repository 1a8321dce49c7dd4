"""Keeps what the OTLP exporters log of an export of ours out of the log: one clear line of ours stands for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.common._internal",
    "opentelemetry.exporter.http.transport",
    "urllib3.connectionpool",
)

_here = threading.local()
"""``said``: the lines of the block that this thread is inside of, else None."""


class _Overheard(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        said: list[str] | None = getattr(_here, "said", None)
        if said is None:
            return True
        said.append(record.getMessage())
        return False


_FILTER = _Overheard()


@contextmanager
def overheard(exporter: str) -> Iterator[list[str]]:
    """What the SDK says on this thread within the block goes into the list instead of the log.

    Args:
        exporter: the module of the HTTP exporter in use, ``trace_exporter`` or ``metric_exporter``.
    """
    for name in (*_LOGGERS, f"opentelemetry.exporter.otlp.proto.http.{exporter}"):
        logging.getLogger(name).addFilter(_FILTER)  # the same one again is not added
    said: list[str] = []
    _here.said = said
    try:
        yield said
    finally:
        _here.said = None
