"""The risk of each exported span as a numeric score of Langfuse, which compares an attribute only as text.

Scores go out in batches to the API that Langfuse's own SDKs use for them, ``POST /api/public/ingestion`` with events of
the type ``score-create``; https://api.reference.langfuse.com describes it. A score's id is made of its span's, so that
one sent twice is one score.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from corevital.guard import swallow
from corevital.log import warn_once
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.errors import SettingsError
from corevital_otel.losses import Loss
from corevital_otel.otlp.destination import Destination, shown
from corevital_otel.otlp.quiet import quieted
from corevital_otel.spans.attributes import evaluation_of
from corevital_otel.spans.record import SpanRecord

if TYPE_CHECKING:
    import httpx

SIGNAL: Final = "scores"

_PATH: Final = "/api/public/ingestion"
_OTLP: Final = "/api/public/otel"
_BATCH: Final = 100
_WAITING: Final = 2048
_GATHER_S: Final = 1.0
_TIMEOUT_S: Final = 10.0
_PAUSES_S: Final = (1.0, 4.0)
"""Before a batch is tried again."""
_AGAIN: Final = frozenset((408, 429, 500, 502, 503, 504))
_MOST_ANSWER: Final = 2**20
_LONGEST: Final = 1000


@dataclass(frozen=True, slots=True)
class Account:
    """Where scores go. Its text never shows a key.

    Attributes:
        host: URL of Langfuse.
        public_key, secret_key: of the project.
    """

    host: str
    public_key: str = field(repr=False)
    secret_key: str = field(repr=False)


def account(env: Mapping[str, str], where: Destination | None) -> Account | None:
    """The account that ``LANGFUSE_PUBLIC_KEY``, ``LANGFUSE_SECRET_KEY`` and ``LANGFUSE_HOST`` name.

    Args:
        env: environment variables.
        where: the destination of spans, which gives the host if its path is Langfuse's and no variable does.

    Returns:
        None where neither key is set.

    Raises:
        SettingsError: a key or the host is missing, or the host is not a URL.
    """
    keys = {name: env.get(f"LANGFUSE_{name}", "").strip() for name in ("PUBLIC_KEY", "SECRET_KEY")}
    if not any(keys.values()):
        return None
    for name, value in keys.items():
        if not (value and value.isascii() and value.isprintable()):
            raise SettingsError(f"LANGFUSE_{name} is missing or not printable ASCII: set both keys, or neither")
    host = env.get("LANGFUSE_HOST", "").strip() or env.get("LANGFUSE_BASE_URL", "").strip()
    if not host and where is not None and _OTLP in where.url:
        host = where.url.partition(_OTLP)[0]
    try:
        url = urlsplit(host)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and "@" not in url.netloc
    except ValueError:
        is_url = False
    if not is_url:
        raise SettingsError(
            "LANGFUSE_HOST is missing or not a URL without credentials: set it, as https://langfuse.example.com"
        )
    return Account(host.rstrip("/"), keys["PUBLIC_KEY"], keys["SECRET_KEY"])


class LangfuseScores:
    """Queues scores and sends them from a separate thread. What does not fit or arrive is counted.

    Args:
        counters: counts deliveries and losses.
        account: where they go.
    """

    def __init__(self, counters: Counters, account: Account) -> None:
        self._counters = counters
        self._host = shown(account.host)
        self._url = f"{account.host}{_PATH}"
        pair = f"{account.public_key}:{account.secret_key}".encode()
        self._headers = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._sending = 0
        self._closing = self._given_up = False
        counters.add(names.EXPORTED, 0, signal=SIGNAL)
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="corevital-scores", daemon=True)
        self._thread.start()

    def send(self, record: SpanRecord) -> None:
        """Queue the score of a span, if the span is exported and has one. Returns at once."""
        score = record.attributes.get(names.RISK_SCORE)
        if score is None or not record.ids.exported:
            return
        event = _event(record, float(score))
        with self._changed:
            if self._closing or len(self._waiting) >= _WAITING:
                self._counters.count_loss(Loss.SCORE_SHUTDOWN if self._closing else Loss.SCORE_QUEUE_FULL)
                return
            self._waiting.append(event)
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Deliver what is queued, for at most this long, and count the rest."""
        with self._changed:
            self._closing, self._deadline = True, time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._given_up = True
            self._counters.count_loss(Loss.SCORE_SHUTDOWN, len(self._waiting) + self._sending)
            self._waiting.clear()
            self._sending = 0

    def _run(self) -> None:
        context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # our own requests are not traced
        import httpx

        with httpx.Client(headers=self._headers, timeout=_TIMEOUT_S, follow_redirects=False) as client:
            while batch := self._take():
                try:
                    with quieted():
                        self._deliver(client, batch)
                except Exception:
                    self._settle(failed=len(batch))
                    swallow("scores for Langfuse")

    def _take(self) -> list[dict[str, Any]]:
        """The next batch; empty once closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._changed.wait_for(lambda: self._closing or len(self._waiting) >= _BATCH, _GATHER_S)
            if time.monotonic() > self._deadline:
                return []
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            self._sending = len(batch)
            return batch

    def _settle(self, *, delivered: int = 0, rejected: int = 0, failed: int = 0) -> None:
        """Count what became of the batch, unless :meth:`close` has given it up."""
        with self._changed:
            if self._given_up:
                return
            self._sending = 0
        self._counters.add(names.EXPORTED, delivered, signal=SIGNAL)
        self._counters.count_loss(Loss.SCORE_REJECTED, rejected)
        self._counters.count_loss(Loss.SCORE_EXPORT_FAILED, failed)

    def _deliver(self, client: httpx.Client, batch: list[dict[str, Any]]) -> None:
        import httpx

        why = ""
        for pause_s in (*_PAUSES_S, None):
            try:
                answer = client.post(self._url, json={"batch": batch})
            except httpx.HTTPError as error:
                why = type(error).__name__
            else:
                if answer.is_success:
                    return self._accepted(answer, len(batch))
                why = f"HTTP {answer.status_code}"
                if answer.status_code not in _AGAIN:
                    break
            if pause_s is None or self._closing:
                break
            with self._changed:
                self._changed.wait_for(lambda: self._closing, pause_s)
        self._settle(failed=len(batch))
        warn_once(
            "scores",
            "scores are not delivered to %s (%s): check LANGFUSE_HOST and both keys; further failures are only "
            "counted; spans and requests are unaffected",
            self._host,
            why,
        )

    def _accepted(self, answer: httpx.Response, count: int) -> None:
        """Count a batch that was taken in, and of it what was rejected."""
        rejected = 0
        if len(answer.content) <= _MOST_ANSWER:
            try:
                errors = answer.json().get("errors", [])
                rejected = min(len(errors), count) if isinstance(errors, list) else 0
            except (ValueError, AttributeError):
                pass
        self._settle(delivered=count - rejected, rejected=rejected)


def _event(record: SpanRecord, score: float) -> dict[str, Any]:
    """The score of a span. It has no content."""
    ids, evaluation = record.ids, evaluation_of(record.attributes)
    return {
        "id": f"corevital-{ids.span_id}",
        "type": "score-create",
        "timestamp": datetime.fromtimestamp(record.end_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        "body": {
            "id": f"corevital-{ids.span_id}",
            "traceId": ids.trace_id,
            "observationId": ids.span_id,
            "name": names.RISK_SCORE,
            "value": score,
            "dataType": "NUMERIC",
            "comment": str(evaluation[names.EVALUATION_EXPLANATION])[:_LONGEST],
        },
    }
