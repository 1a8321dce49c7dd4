"""A ``requests`` session for the SDK's HTTP exporters that reads a bounded answer within a bounded time.

``requests`` reads an answer whole, and its timeout applies to each read. Here an answer has :data:`ANSWER_BYTES` at
most, decoded, and the exporter's timeout applies to the whole try: connecting, TLS, sending, headers and body. A timer
shuts the connection down when the time is over.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, TimeoutError

from corevital_otel.otlp.answers import innermost

ANSWER_BYTES: Final = 65_536
"""Most bytes of an answer's body. An OTLP answer has some hundred."""

OnAnswer = Callable[[Any, "bytes | None"], "Exception | None"]

_DEFAULT_TIMEOUT_S: Final = 10.0
_LEAST_TIMEOUT_S: Final = 0.001
_TIMEOUTS: Final = (requests.exceptions.Timeout, TimeoutError)
_current = threading.local()
"""``watch``: that of the request this thread is making."""


class BoundedSession(requests.Session):
    """Obeys ``OTEL_EXPORTER_OTLP_CERTIFICATE`` even where ``REQUESTS_CA_BUNDLE`` is set for all others.

    Args:
        on_answer: takes each answer with its body, or None if that is too long or cannot be decoded; or the exception
            in its place, with None. What it returns is raised instead.
    """

    def __init__(self, on_answer: OnAnswer) -> None:
        super().__init__()
        self._on_answer = on_answer
        self.headers["Accept-Encoding"] = "gzip, deflate"
        for scheme in ("https://", "http://"):
            self.mount(scheme, _Adapter())

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """See the base class."""
        own = self.verify if verify is None and isinstance(self.verify, str) else verify
        return super().merge_environment_settings(url, proxies, stream, own, cert)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None: a redirect is an answer like any other."""
        return None

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """See the base class."""
        return _reported(lambda: self._bounded(*args, **kwargs), self._on_answer)

    def _bounded(self, *args: Any, **kwargs: Any) -> tuple[requests.Response, bytes | None]:
        timeout = kwargs.get("timeout")
        total_s = max(float(timeout), _LEAST_TIMEOUT_S) if isinstance(timeout, (int, float)) else _DEFAULT_TIMEOUT_S
        kwargs |= {"timeout": total_s, "stream": True, "allow_redirects": False}
        with _Watch(total_s) as watch:
            try:
                try:
                    answer = super().request(*args, **kwargs)
                except requests.exceptions.ConnectionError as error:
                    if watch.over or not isinstance(innermost(error), (ConnectionResetError, BrokenPipeError)):
                        raise
                    answer = super().request(*args, **kwargs)  # the backend had closed a connection that was kept
                with _closed_on_error(answer):
                    body = _body(answer)
                    if watch.over:
                        raise _no_answer(total_s)
            except (requests.exceptions.RequestException, HTTPError, OSError, ValueError) as error:
                if watch.over or isinstance(error, _TIMEOUTS):
                    raise _no_answer(total_s) from None
                raise
            return answer, body


def bound(session: requests.Session, on_answer: OnAnswer) -> None:
    """Bound another session as far as possible: the user's, from a credential provider.

    Its answers are read to the same bound, and redirects are not followed; its timeout applies to each read.
    """
    own = session.request

    def read(*args: Any, **kwargs: Any) -> tuple[requests.Response, bytes | None]:
        answer = own(*args, **kwargs)
        with _closed_on_error(answer):
            return answer, _body(answer)

    def request(*args: Any, **kwargs: Any) -> requests.Response:
        return _reported(lambda: read(*args, **kwargs | {"allow_redirects": False, "stream": True}), on_answer)

    session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]
    session.request = request  # type: ignore[method-assign]


def _reported(make: Callable[[], tuple[requests.Response, bytes | None]], on_answer: OnAnswer) -> requests.Response:
    try:
        answer, body = make()
    except Exception as error:
        if (instead := on_answer(error, None)) is not None:
            raise instead from None
        raise
    if (instead := on_answer(answer, body)) is not None:
        raise instead
    return answer


@contextlib.contextmanager
def _closed_on_error(answer: requests.Response) -> Iterator[None]:
    try:
        yield
    except BaseException:
        answer.raw.close()
        raise


def _no_answer(total_s: float) -> requests.exceptions.Timeout:
    return requests.exceptions.ReadTimeout(f"no complete answer within {round(total_s, 2):g} s")


def _body(answer: requests.Response) -> bytes | None:
    """The decoded body; the answer has it too. None where it is too long or cannot be decoded."""
    raw = answer.raw
    data = b""
    while len(data) <= ANSWER_BYTES and (more := raw.read(ANSWER_BYTES + 1 - len(data), decode_content=False)):
        data += more
    body: bytes | None = None
    if len(data) <= ANSWER_BYTES:
        body = _decoded(data, answer.headers.get("Content-Encoding", "").strip().lower())
    if not raw.closed:
        raw.close()  # the rest is not read, so the connection is not used again
    raw.release_conn()
    answer._content = body or b""
    answer._content_consumed = True
    return body


def _decoded(data: bytes, encoding: str) -> bytes | None:
    if not data or encoding in ("", "identity"):
        return data
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return None
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # with the header of gzip or zlib; without one
        found = zlib.decompressobj(window)
        with contextlib.suppress(zlib.error):
            body = found.decompress(data, ANSWER_BYTES + 1)
            return body if found.eof and len(body) <= ANSWER_BYTES else None
    return None


class _Watch:
    """Shuts the connections of one try down when its time is over.

    It holds duplicates of their descriptors: a TLS handshake, and an answer after which the connection is closed, go on
    on sockets that are out of reach otherwise.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self.answers: list[http.client.HTTPResponse] = []
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.name, self._timer.daemon = "corevital-otlp-timeout", True

    def __enter__(self) -> _Watch:
        _current.watch = self
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _current.watch = None
        self._timer.cancel()
        if kind is not None:
            for answer in self.answers:  # urllib3 forgets one whose headers it refuses
                answer.close()
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()

    def add(self, connection: Any) -> None:
        """Watch a connection too."""
        with self._lock, contextlib.suppress(OSError, AttributeError, ValueError):
            twin = socket.socket(fileno=os.dup(connection.fileno()))
            self._sockets.append(twin)
            if self.over:
                twin.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        with self._lock:
            self.over = True
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


def _watched(connection: Any) -> None:
    if (watch := getattr(_current, "watch", None)) is not None and connection is not None:
        watch.add(connection)


class _Answer(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (watch := getattr(_current, "watch", None)) is not None:
            watch.answers.append(self)


class _Watched:
    """A connection of urllib3's that the try it is used for watches."""

    response_class = _Answer
    sock: Any

    def _new_conn(self) -> Any:
        made = super()._new_conn()  # type: ignore[misc]
        _watched(made)
        return made

    def request(self, *args: Any, **kwargs: Any) -> None:
        _watched(self.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]


class _Http(_Watched, HTTPConnection):  # type: ignore[misc]
    pass


class _Https(_Watched, HTTPSConnection):  # type: ignore[misc]
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


_POOLS: Final = {"http": _HttpPool, "https": _HttpsPool}


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not str(proxy).lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager
