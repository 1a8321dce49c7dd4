"""A running server as the page shows it, read at most once a second however many browsers look."""

from __future__ import annotations

import threading
import time
from typing import Final

from corevital_otel.cli.scrape import ScrapeError, Window, base, scrape
from corevital_otel.cli.watch import MODEL, busiest
from corevital_otel.otlp.destination import shown
from corevital_otel.ui.now import ModelNow, NotReachedError, Now

_EVERY_S: Final = 1.0
_TIMEOUT_S: Final = 3.0
_MODELS: Final = 50
_HISTORY: Final = 300
"""Readings of running sequences that are kept."""


class LiveServer:
    """Reads one server's metrics when it is asked.

    Args:
        url: of the server, as for ``corevital watch``.
    """

    def __init__(self, url: str) -> None:
        self._url = base(url)
        self._lock = threading.Lock()
        self._window: Window | None = None
        self._read_at = 0.0
        self._trouble = ""
        self._history: list[float] = []

    def __call__(self) -> Now:
        """The server now.

        Raises:
            NotReachedError: it could never be read, or not for a minute.
        """
        with self._lock:
            if time.monotonic() - self._read_at >= _EVERY_S:
                self._read()
            if self._window is None:
                raise NotReachedError(self._trouble)
            return self._now(self._window)

    def _read(self) -> None:
        try:
            page = scrape(self._url, _TIMEOUT_S)
        except ScrapeError as error:
            self._trouble = str(error)
            if self._window is not None and time.monotonic() - self._window.now.at > 60:
                self._window, self._history = None, []
        else:
            self._trouble = ""
            self._window = self._window or Window()
            self._window.add(page)
            self._history = [*self._history[1 - _HISTORY :], page.total("corevital_sequences_running")]
        finally:
            self._read_at = time.monotonic()

    def _now(self, window: Window) -> Now:
        return Now(
            server=shown(self._url),
            seconds=window.seconds,
            models=[_model(window, name, **{MODEL: name}) for name in busiest(window.now)[:_MODELS]],
            total=_model(window, "all models"),
            flags=window.increases("corevital_health_flags_total", "flag"),
            warnings=window.increases("corevital_health_warnings_total", "warning"),
            finished=window.increases("corevital_requests_total", "finish_reason"),
            alarmed=window.now.total("corevital_sequences_alarmed"),
            lost=window.increase("corevital_telemetry_dropped_total"),
            errors=window.increase("corevital_telemetry_faults_total"),
            waiting=window.now.total("corevital_telemetry_queue"),
            lag_s=window.quantile("corevital_telemetry_lag_seconds", 0.95),
            history=list(self._history),
            trouble=self._trouble,
        )


def _model(window: Window, name: str, **only: str) -> ModelNow:
    ended = window.increase("corevital_requests_total", **only)
    high = window.increase("corevital_requests_total", risk_level="high", **only)
    return ModelNow(
        name=name,
        running=window.now.total("corevital_sequences_running", **only),
        looping=window.now.total("corevital_sequences_looping", **only),
        requests_s=window.rate("corevital_requests_total", **only),
        tokens_s=window.rate("corevital_tokens_total", **only),
        first_token_s=window.quantile("gen_ai_server_time_to_first_token_seconds", 0.95, **only),
        risk=window.quantile("corevital_risk_score", 0.95, **only),
        high=high / ended if ended else None,
        entropy=window.mean("corevital_entropy_bits", **only),
    )
