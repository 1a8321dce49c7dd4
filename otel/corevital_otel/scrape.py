"""Reads corevital's metrics from a running server's ``/metrics``, and what they did over the last minute."""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

WINDOW_S: Final = 60.0
_PREFIXES: Final = ("corevital_", "gen_ai_server_")
_START: Final = "serve with `vllm serve MODEL --logits-processor corevital`, or name the server with --url"

# Straight to the server: by default urllib sends even loopback requests to a proxy that the environment names.
_open: Final = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

Labels = dict[str, str]


class ScrapeError(Exception):
    """There is nothing to read. Its text is one line that names the cause and the mend."""


class NoServerError(ScrapeError):
    """Nobody answers there."""


@dataclass(frozen=True)
class Page:
    """One reading: samples by name, each with its labels; and when it was taken (``time.monotonic``)."""

    at: float
    samples: dict[str, list[tuple[Labels, float]]] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of ``name`` whose labels include these."""
        return sum(value for its, value in self.samples.get(name, ()) if labels.items() <= its.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums of the samples of ``name`` by one label's values."""
        sums: dict[str, float] = {}
        for its, value in self.samples.get(name, ()):
            sums[its.get(label, "")] = sums.get(its.get(label, ""), 0.0) + value
        return sums


def scrape(url: str, timeout_s: float = 5.0) -> Page:
    """Read a server's metrics.

    Args:
        url: the server's, such as ``http://localhost:8000``; without scheme, or with ``/metrics``, will do.

    Raises:
        ScrapeError: no server, no such page, or none of our metrics on it.
    """
    page = f"{base(url)}/metrics"
    try:
        with _open(page, timeout=timeout_s) as reply:
            text = reply.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        raise ScrapeError(f"{page} answers {error.code} and has no metrics: {_START}") from None
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        raise NoServerError(f"no server answers at {page} ({cause}): {_START}") from None
    return Page(time.monotonic(), _parse(page, text))


def base(url: str) -> str:
    """A server's URL as :func:`scrape` reads it."""
    return (url if url.startswith(("http://", "https://")) else f"http://{url}").rstrip("/").removesuffix("/metrics")


def _parse(page: str, text: str) -> dict[str, list[tuple[Labels, float]]]:
    ours = (line for line in text.splitlines() if line.removeprefix("# TYPE ").startswith(_PREFIXES))
    samples: dict[str, list[tuple[Labels, float]]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(ours) + "\n"):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    except ValueError as error:
        raise ScrapeError(f"{page} cannot be read as Prometheus metrics ({error}): {_START}") from None
    if not any(name.startswith("corevital_") for name in samples):
        raise ScrapeError(f"{page} has no corevital metrics: {_START} (and not with COREVITAL_ENABLED=0)")
    return samples


class Window:
    """The readings of the last minute; the newest and what changed since the oldest."""

    def __init__(self) -> None:
        self._pages: deque[Page] = deque()

    def add(self, page: Page) -> None:
        """A new reading. One of a server that has started anew forgets those before it."""
        busy = "corevital_telemetry_cpu_time_seconds_total"  # grows with every reading
        if self._pages and page.total(busy) < self.now.total(busy):
            self._pages.clear()
        self._pages.append(page)
        while page.at - self._pages[0].at > WINDOW_S:
            self._pages.popleft()

    @property
    def now(self) -> Page:
        """The newest reading."""
        return self._pages[-1]

    @property
    def seconds(self) -> float:
        """From the oldest reading to the newest; 0 where there is one."""
        return self.now.at - self._pages[0].at

    def increase(self, name: str, **labels: str) -> float:
        """What a counter gained."""
        return max(self.now.total(name, **labels) - self._pages[0].total(name, **labels), 0.0)

    def increases(self, name: str, label: str) -> dict[str, float]:
        """What it gained by one label's values, where it did."""
        before = self._pages[0].by(name, label)
        gained = {value: total - before.get(value, 0.0) for value, total in self.now.by(name, label).items()}
        return {value: gain for value, gain in gained.items() if gain > 0}

    def rate(self, name: str, **labels: str) -> float | None:
        """The same a second; None where there is one reading only."""
        return self.increase(name, **labels) / self.seconds if self.seconds else None

    def mean(self, name: str, **labels: str) -> float | None:
        """Of what a histogram took in; None where that is nothing."""
        count = self.increase(f"{name}_count", **labels)
        return self.increase(f"{name}_sum", **labels) / count if count else None

    def quantile(self, name: str, q: float, **labels: str) -> float | None:
        """Of what a histogram took in, interpolated within its bucket; None where that is nothing.

        Beyond the last bound it is that bound, as in PromQL's ``histogram_quantile``.
        """
        bounds = {float(its["le"]) for its, _ in self.now.samples.get(f"{name}_bucket", ())}
        below, start = 0.0, 0.0
        rank = q * self.increase(f"{name}_count", **labels)
        if not rank:
            return None
        for bound in sorted(bounds):
            count = self.increase(f"{name}_bucket", le=_text(bound), **labels)
            if count >= rank:
                return start if math.isinf(bound) else start + (bound - start) * (rank - below) / (count - below)
            below, start = count, bound
        return start


def _text(bound: float) -> str:
    """A bound as the page spells it."""
    return "+Inf" if math.isinf(bound) else repr(bound)
