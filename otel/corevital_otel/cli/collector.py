"""Tests a collector with an export of no spans, sent as the server's exporter would send it."""

from __future__ import annotations

import queue
import threading
from typing import Final, Literal

from corevital.text import printable
from corevital_otel.otlp.destination import Destination

_ANSWER_S: Final = 5.0
_CAUSE: Final = 200
Status = Literal["ok", "warn", "fail"]
Items = Literal["spans", "log records"]


def answer(where: Destination, timeout_s: float = _ANSWER_S, items: Items = "spans") -> tuple[Status, str]:
    """A collector's answer to an empty export, and the fix where it fails.

    Args:
        where: the collector; it accepts connections.
        timeout_s: limit for the whole exchange; ``OTEL_EXPORTER_OTLP_TIMEOUT`` does not change it.
        items: what it would be sent.

    Returns:
        The check's status, and the text that follows the endpoint's name.
    """
    answers: queue.Queue[tuple[Status, str]] = queue.Queue()
    # a daemon: an exporter that hangs cannot be stopped, and must not keep the command from ending
    threading.Thread(target=_ask, args=(where, items, answers), name="corevital-doctor", daemon=True).start()
    try:
        return answers.get(timeout=timeout_s)
    except queue.Empty:
        fix = "check the collector, and that the protocol is the port's (4317: grpc, 4318: http/protobuf)"
        return "fail", f" accepts connections but does not answer within {timeout_s:g} s: {fix}"


def _ask(where: Destination, items: Items, answers: queue.Queue[tuple[Status, str]]) -> None:
    try:
        from corevital_otel.otlp.exporter import ListeningExporter
        from corevital_otel.otlp.kinds import LOGS, SPANS

        verdict = ListeningExporter(where, SPANS if items == "spans" else LOGS).send([])
        message = printable(verdict.message, _CAUSE)
        if verdict.delivered:
            answers.put(("ok", ""))
        elif verdict.unsupported and items == "log records":
            answers.put(("warn", f" takes no {items} ({message}): set OTEL_LOGS_EXPORTER=none"))
        else:
            answers.put(("fail", f" refuses {items} ({message or 'no reason given'}): {_fix(message)}"))
    except Exception as error:  # any exception of the SDK; its text may contain a header
        answers.put(("fail", f" cannot be tested ({type(error).__name__}): check the OTEL_EXPORTER_OTLP_* variables"))


def _fix(message: str) -> str:
    if any(word in message for word in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED")):
        return "check OTEL_EXPORTER_OTLP_HEADERS"
    if any(word in message for word in ("404", "405", "UNIMPLEMENTED")):
        return "check the path in OTEL_EXPORTER_OTLP_ENDPOINT, and the protocol"
    return "check the collector and its log"
