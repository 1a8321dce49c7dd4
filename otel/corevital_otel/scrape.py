"""Reads corevital's metrics from a running server's ``/metrics``, and what they did over the last minute.

The page may be anyone's: it is read up to a size and for a time in all, and what is on it may be wrong.
"""

from __future__ import annotations

import http.client
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final
from urllib.parse import urljoin, urlsplit

from prometheus_client.parser import text_string_to_metric_families

from corevital.text import cut, printable
from corevital_otel.destination import shown

WINDOW_S: Final = 60.0
MAX_BYTES: Final = 16 << 20
"""Bytes of a page."""
MAX_SERIES: Final = 50_000
"""Series of ours on a page, about: lines."""
_MAX_KEPT: Final = 4 * MAX_SERIES
"""Series of all readings in a window; the oldest readings go first."""
_MAX_VALUE: Final = 1e18
"""Counts and seconds are below it; sums of what is larger would overflow."""
_MAX_LINE: Final = 16 << 10
_CAUSE: Final = 200
"""Characters of a cause in a line of ours."""
_REDIRECTS: Final = 3
_PREFIXES: Final = ("corevital_", "gen_ai_server_")
_START: Final = "serve with `vllm serve MODEL --logits-processor corevital`, or name the server with --url"

Labels = dict[str, str]


class ScrapeError(Exception):
    """There is nothing to read. Its text is one printable line that names the cause and the fix."""


class NoServerError(ScrapeError):
    """No server answers there."""


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

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """A histogram's cumulative counts by upper bound, of samples whose labels include these."""
        sums: dict[float, float] = {}
        for its, value in self.samples.get(f"{name}_bucket", ()):
            if (bound := _bound(its.get("le", ""))) is not None and labels.items() <= its.items():
                sums[bound] = sums.get(bound, 0.0) + value
        return sums


def scrape(url: str, timeout_s: float = 5.0) -> Page:
    """Read a server's metrics.

    Args:
        url: the server's, such as ``http://localhost:8000``; without scheme, or with ``/metrics``, will do.
        timeout_s: for all of it.

    Raises:
        ScrapeError: no server, no such page, one that is too large, or none of our metrics on it.
    """
    page = f"{base(url)}/metrics"
    text = _Reading(page, timeout_s).text()
    return Page(time.monotonic(), _parse(shown(page), text))


def base(url: str) -> str:
    """A server's URL as :func:`scrape` reads it."""
    url = url.strip()
    return (url if url.startswith(("http://", "https://")) else f"http://{url}").rstrip("/").removesuffix("/metrics")


class _Reading:
    """One page, read in a thread of its own: names, connections and trickling answers all wait as long as they like.

    Straight from the server, past any proxy that the environment names.

    Args:
        page: its URL.
        timeout_s: for all of it.
    """

    def __init__(self, page: str, timeout_s: float) -> None:
        self._page = page
        self._shown = shown(page)
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._text = ""
        self._error: Exception | None = None
        self._over = False

    def text(self) -> str:
        """The page.

        Raises:
            ScrapeError: it cannot be read.
        """
        thread = threading.Thread(target=self._run, name="corevital-scrape", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if thread.is_alive():
            self._over = True
            connection = self._connection
            if connection is not None and connection.sock is not None:
                with suppress(OSError, AttributeError):  # ends the thread's wait
                    connection.sock.shutdown(socket.SHUT_RDWR)
            raise NoServerError(f"{self._shown} is not answered whole within {self._timeout_s:g} s: {_START}")
        if isinstance(self._error, ScrapeError):
            raise self._error
        if self._error is not None:
            cause = _cause(getattr(self._error, "strerror", None) or self._error)
            raise NoServerError(f"no server answers at {self._shown} ({cause}): {_START}") from None
        return self._text

    def _run(self) -> None:
        try:
            self._text = self._read(self._page)
        except Exception as error:  # of the network, of http.client, of a URL that is none
            self._error = error

    def _read(self, page: str) -> str:
        for _ in range(_REDIRECTS + 1):
            self._connection = connection = self._connect(page)
            try:
                connection.request("GET", urlsplit(page).path or "/", headers={"Accept-Encoding": "identity"})
                with connection.getresponse() as reply:
                    if reply.status not in (301, 302, 303, 307, 308):
                        return self._body(reply)
                    page = self._moved(page, reply.headers.get("Location", ""))
            finally:
                connection.close()
        raise ScrapeError(f"{self._shown} redirects again and again: {_START}")

    def _connect(self, page: str) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(page)
            host, port = parts.hostname, parts.port
        except ValueError:  # its text may hold half of a password
            host = port = None
        if not host:
            raise ScrapeError(f"{self._shown} has no valid host and port: use http://HOST:PORT")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(host, port, timeout=self._timeout_s)

    def _moved(self, page: str, location: str) -> str:
        target = urljoin(page, location)
        if urlsplit(target)[:2] != urlsplit(page)[:2]:
            raise ScrapeError(f"{self._shown} redirects to another server, {shown(target)}: {_START}")
        return target

    def _body(self, reply: http.client.HTTPResponse) -> str:
        if reply.status != 200:
            raise ScrapeError(f"{self._shown} answers {reply.status} and has no metrics: {_START}")
        if reply.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ScrapeError(f"{self._shown} is compressed, which was not asked for: {_START}")
        data = bytearray()
        while not self._over and (part := reply.read1(1 << 16)):
            data += part
            if len(data) > MAX_BYTES:
                raise ScrapeError(f"{self._shown} is larger than {MAX_BYTES >> 20} MiB: {_START}")
        return data.decode("utf-8", "replace")


def _cause(error: object) -> str:
    """Its text, printable and short also where much of it is escaped."""
    return printable(error, _CAUSE)[: 2 * _CAUSE] or type(error).__name__


def _parse(page: str, text: str) -> dict[str, list[tuple[Labels, float]]]:
    """The page's samples of ours that can be: neither NaN nor negative nor huge, with labels of a bounded length."""
    samples: dict[str, list[tuple[Labels, float]]] = {}
    lines = list(islice(_ours(text), MAX_SERIES + 1))
    if len(lines) > MAX_SERIES:
        raise ScrapeError(f"{page} has more than {MAX_SERIES:,} lines of ours: {_START}")
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                value = float(sample.value)
                if 0 <= value <= _MAX_VALUE:
                    labels = {cut(name): cut(text) for name, text in sample.labels.items()}
                    samples.setdefault(cut(sample.name), []).append((labels, value))
    except Exception as error:  # the parser raises what it likes
        raise ScrapeError(f"{page} cannot be read as Prometheus metrics ({_cause(error)}): {_START}") from None
    if not any(name.startswith("corevital_") for name in samples):
        raise ScrapeError(f"{page} has no corevital metrics: {_START} (and not with COREVITAL_ENABLED=0)")
    return samples


def _ours(text: str) -> Iterator[str]:
    """Lines of ours. One that no label of ours could make so long is left out."""
    return (
        line
        for line in text.split("\n")
        if line.removeprefix("# TYPE ").startswith(_PREFIXES) and len(line) <= _MAX_LINE
    )


class Window:
    """The readings of the last minute; the newest and what changed since the oldest."""

    def __init__(self) -> None:
        self._pages: deque[Page] = deque()
        self._sizes: deque[int] = deque()

    def add(self, page: Page) -> None:
        """A new reading. One of a server that has started anew forgets those before it."""
        busy = "corevital_telemetry_cpu_time_seconds_total"  # grows with every reading
        if self._pages and page.total(busy) < self.now.total(busy):
            self._pages.clear()
            self._sizes.clear()
        self._pages.append(page)
        self._sizes.append(sum(map(len, page.samples.values())))
        while len(self._pages) > 1 and (page.at - self._pages[0].at > WINDOW_S or sum(self._sizes) > _MAX_KEPT):
            self._pages.popleft()
            self._sizes.popleft()

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
        now, before = self.now.buckets(name, **labels), self._pages[0].buckets(name, **labels)
        below, start = 0.0, 0.0
        rank = q * self.increase(f"{name}_count", **labels)
        if not rank:
            return None
        for bound in sorted(now):
            count = max(now[bound] - before.get(bound, 0.0), 0.0)
            if count >= rank:
                return start if math.isinf(bound) else start + (bound - start) * (rank - below) / (count - below)
            below, start = count, bound if math.isfinite(bound) else start
        return start


def _bound(text: str) -> float | None:
    """A bucket's upper bound, or None if there is none."""
    try:
        bound = float(text)
    except ValueError:
        return None
    return None if math.isnan(bound) or bound == -math.inf else bound
