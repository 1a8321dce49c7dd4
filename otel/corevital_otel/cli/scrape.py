"""Reads corevital's metrics from a running server's ``/metrics``, and their changes over the last minute.

The page is untrusted: its size and the total time are bounded, and its values may be wrong.
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
from corevital_otel.cli.engines import ENGINES
from corevital_otel.http.challenge import CHALLENGE
from corevital_otel.otlp.destination import shown
from corevital_otel.settings import SettingsError, load

WINDOW_S: Final = 60.0
MAX_BYTES: Final = 16 << 20
"""Bytes of a page."""
MAX_SERIES: Final = 50_000
"""Lines of corevital metrics on a page."""
_MAX_KEPT: Final = 4 * MAX_SERIES
"""Series of all readings in a window; beyond it the oldest readings are dropped."""
_MAX_VALUE: Final = 1e18
"""Larger values are ignored: their sums could overflow."""
_MAX_LINE: Final = 16 << 10
_CAUSE: Final = 200
"""Characters of a cause in a message."""
_REDIRECTS: Final = 3
_PREFIXES: Final = ("corevital_", "gen_ai_server_")
_START: Final = f"serve with `{ENGINES[0].serve}`, or name the server with --url"

Labels = dict[str, str]


class ScrapeError(Exception):
    """The page cannot be used. The text is one printable line that names the cause and the fix."""


class NoServerError(ScrapeError):
    """No server answers."""


class _TokenNeededError(ScrapeError):
    """The page is a hub's and needs a token."""


@dataclass(frozen=True)
class Page:
    """One reading: samples by name, each with its labels, and its time (``time.monotonic``)."""

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
        url: of the server, such as ``http://localhost:8000``; the scheme is optional, ``/metrics`` allowed.
        timeout_s: in total.

    Raises:
        ScrapeError: no server, no such page, a page that is too large, or no corevital metrics on it.
    """
    return parsed(url, read(url, timeout_s))


def read(url: str, timeout_s: float = 5.0) -> str:
    """The text of a server's ``/metrics``, whatever is on it.

    Args:
        url: as for :func:`scrape`.
        timeout_s: in total.

    Raises:
        ScrapeError: no server, no such page, or a page that is too large.
    """
    page = f"{base(url)}/metrics"
    try:
        return _Reading(page, timeout_s).text()
    except _TokenNeededError:  # only now: no other server gets the token
        return _Reading(page, timeout_s, _token(shown(page))).text()


def parsed(url: str, text: str) -> Page:
    """A page that was just read.

    Raises:
        ScrapeError: it is too large, or has no corevital metrics.
    """
    return Page(time.monotonic(), _parse(shown(f"{base(url)}/metrics"), text))


def _token(page: str) -> str:
    """The token of the hub's HTTP port.

    Raises:
        ScrapeError: none is set, or a setting is wrong.
    """
    try:
        token = load().http_token
    except SettingsError as error:
        raise ScrapeError(str(error)) from None
    if token is None:
        raise ScrapeError(f"{page} needs a token: set COREVITAL_HTTP_TOKEN to the one that the hub has")
    return token


def base(url: str) -> str:
    """A server's URL as :func:`scrape` reads it."""
    url = url.strip()
    return (url if url.startswith(("http://", "https://")) else f"http://{url}").rstrip("/").removesuffix("/metrics")


class _Reading:
    """One page, read by a thread within a total time: DNS, connecting and a trickling answer have no common limit.

    Ignores the environment's proxies.

    Args:
        page: its URL.
        timeout_s: in total.
        token: of the hub's HTTP port.
    """

    def __init__(self, page: str, timeout_s: float, token: str | None = None) -> None:
        self._page = page
        self._token = token
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
                with suppress(OSError, AttributeError):  # wakes the thread
                    connection.sock.shutdown(socket.SHUT_RDWR)
            raise NoServerError(f"{self._shown} does not answer completely within {self._timeout_s:g} s: {_START}")
        if isinstance(self._error, ScrapeError):
            raise self._error
        if self._error is not None:
            cause = _cause(getattr(self._error, "strerror", None) or self._error)
            raise NoServerError(f"no server answers at {self._shown} ({cause}): {_START}") from None
        return self._text

    def _run(self) -> None:
        try:
            self._text = self._read(self._page)
        except Exception as error:  # from the network, from http.client, or from an invalid URL
            self._error = error

    def _read(self, page: str) -> str:
        for _ in range(_REDIRECTS + 1):
            self._connection = connection = self._connect(page)
            try:
                headers = {"Accept-Encoding": "identity"}
                if self._token is not None:
                    headers["Authorization"] = f"Bearer {self._token}"
                connection.request("GET", urlsplit(page).path or "/", headers=headers)
                with connection.getresponse() as reply:
                    if reply.status not in (301, 302, 303, 307, 308):
                        return self._body(reply)
                    page = self._moved(page, reply.headers.get("Location", ""))
            finally:
                connection.close()
        raise ScrapeError(f"{self._shown} redirects too often: {_START}")

    def _connect(self, page: str) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(page)
            host, port = parts.hostname, parts.port
        except ValueError:  # its text may contain part of a password
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
        if reply.status == 401 and reply.headers.get("WWW-Authenticate") == CHALLENGE:
            if self._token is None:
                raise _TokenNeededError(f"{self._shown} needs a token: set COREVITAL_HTTP_TOKEN")
            raise ScrapeError(f"{self._shown} does not accept COREVITAL_HTTP_TOKEN: set it to the one that the hub has")
        if reply.status != 200:
            raise ScrapeError(f"{self._shown} answers {reply.status} and has no metrics: {_START}")
        if reply.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ScrapeError(f"{self._shown} is compressed, although the request asks for plain text: {_START}")
        data = bytearray()
        while not self._over and (part := reply.read1(1 << 16)):
            data += part
            if len(data) > MAX_BYTES:
                raise ScrapeError(f"{self._shown} is larger than {MAX_BYTES >> 20} MiB: {_START}")
        return data.decode("utf-8", "replace")


def _cause(error: object) -> str:
    """The error's text, printable and short, even where much of it is escaped."""
    return printable(error, _CAUSE)[: 2 * _CAUSE] or type(error).__name__


def _parse(page: str, text: str) -> dict[str, list[tuple[Labels, float]]]:
    """The page's corevital samples that are valid: not NaN, negative or huge. Labels are cut."""
    samples: dict[str, list[tuple[Labels, float]]] = {}
    lines = list(islice(_ours(text), MAX_SERIES + 1))
    if len(lines) > MAX_SERIES:
        raise ScrapeError(f"{page} has more than {MAX_SERIES:,} lines of corevital metrics: {_START}")
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                value = float(sample.value)
                if 0 <= value <= _MAX_VALUE:
                    labels = {cut(name): cut(text) for name, text in sample.labels.items()}
                    samples.setdefault(cut(sample.name), []).append((labels, value))
    except Exception as error:  # the parser raises many types
        raise ScrapeError(f"{page} cannot be read as Prometheus metrics ({_cause(error)}): {_START}") from None
    if not any(name.startswith("corevital_") for name in samples):
        raise ScrapeError(f"{page} has no corevital metrics: {_START} (and not with COREVITAL_ENABLED=0)")
    return samples


def _ours(text: str) -> Iterator[str]:
    """Lines of corevital metrics. A line too long for corevital's labels is skipped."""
    return (
        line
        for line in text.split("\n")
        if line.removeprefix("# TYPE ").startswith(_PREFIXES) and len(line) <= _MAX_LINE
    )


class Window:
    """The readings of the last minute: the newest, and the change since the oldest."""

    def __init__(self) -> None:
        self._pages: deque[Page] = deque()
        self._sizes: deque[int] = deque()

    def add(self, page: Page) -> None:
        """Add a reading. After a restart of the server, earlier readings are dropped."""
        busy = "corevital_telemetry_cpu_time_seconds_total"  # increases with every reading
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
        """A counter's increase over the window."""
        return max(self.now.total(name, **labels) - self._pages[0].total(name, **labels), 0.0)

    def increases(self, name: str, label: str) -> dict[str, float]:
        """A counter's increases by one label's values; only those above zero."""
        before = self._pages[0].by(name, label)
        gained = {value: total - before.get(value, 0.0) for value, total in self.now.by(name, label).items()}
        return {value: gain for value, gain in gained.items() if gain > 0}

    def rate(self, name: str, **labels: str) -> float | None:
        """A counter's increase per second; None with a single reading."""
        return self.increase(name, **labels) / self.seconds if self.seconds else None

    def mean(self, name: str, **labels: str) -> float | None:
        """Mean of a histogram's new observations; None without any."""
        count = self.increase(f"{name}_count", **labels)
        return self.increase(f"{name}_sum", **labels) / count if count else None

    def quantile(self, name: str, q: float, **labels: str) -> float | None:
        """Quantile ``q`` of a histogram's new observations, interpolated within a bucket; None without any.

        Beyond the last finite bound it is that bound, as in PromQL's ``histogram_quantile``.
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
    """A bucket's upper bound; None if invalid."""
    try:
        bound = float(text)
    except ValueError:
        return None
    return None if math.isnan(bound) or bound == -math.inf else bound
