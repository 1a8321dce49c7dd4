"""Asks a collector for an answer: an export of no spans, as the server's exporter would send it."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Final, Literal

from corevital.text import printable
from corevital_otel.destination import Destination

_ANSWER_S: Final = 5.0
_CAUSE: Final = 200
Status = Literal["ok", "warn", "fail"]


def answer(where: Destination, timeout_s: float = _ANSWER_S) -> tuple[Status, str]:
    """What a collector, to which a connection can be made, says to an empty export; and what to do about it.

    Args:
        where: the collector.
        timeout_s: all the time it has, whatever ``OTEL_EXPORTER_OTLP_TIMEOUT`` says.
    """
    told: queue.Queue[tuple[Status, str]] = queue.Queue()
    # a daemon: an exporter that waits for ever cannot be ended, and must not keep the command
    threading.Thread(target=_ask, args=(where, told), name="corevital-doctor", daemon=True).start()
    try:
        return told.get(timeout=timeout_s)
    except queue.Empty:
        fix = "check the collector, and that the protocol is the port's (4317: grpc, 4318: http/protobuf)"
        return "fail", f" takes connections and gives no answer within {timeout_s:g} s: {fix}"


def _ask(where: Destination, told: queue.Queue[tuple[Status, str]]) -> None:
    loggers = [logging.getLogger(name) for name in ("opentelemetry", "corevital.otlp")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:  # what they would log is in the check's line
            logger.setLevel(logging.CRITICAL)
        from corevital_otel.otlp import ListeningExporter

        verdict = ListeningExporter(where).send([])
        message = printable(verdict.message, _CAUSE)
        if verdict.delivered:
            told.put(("ok", ""))
        else:
            told.put(("fail", f" does not take spans ({message or 'no reason given'}): {_fix(message)}"))
    except Exception as error:  # the SDK's parts raise what they like; their text may hold a header
        told.put(("fail", f" cannot be asked ({type(error).__name__}): check the OTEL_EXPORTER_OTLP_* variables"))
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fix(message: str) -> str:
    if any(word in message for word in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED")):
        return "check OTEL_EXPORTER_OTLP_HEADERS"
    if any(word in message for word in ("404", "405", "UNIMPLEMENTED")):
        return "check the path in OTEL_EXPORTER_OTLP_ENDPOINT, and the protocol"
    return "check the collector and its log"
