"""The SDK's exporter for a destination, made to send encoded items and to report the outcome of each try.

The SDK's exporters know every ``OTEL_EXPORTER_OTLP_*`` variable. They do not show why they failed, whether waiting
would help, and how many items the backend rejected; and they retry without reporting it. Here a try is one request,
and its :class:`Verdict` is what the backend answered.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from corevital.log import warn_once
from corevital_otel.errors import SettingsError
from corevital_otel.otlp.answers import Verdict, accepted, error_verdict, grpc_verdict, http_verdict
from corevital_otel.otlp.destination import Destination
from corevital_otel.otlp.encoding import EncodedItem
from corevital_otel.otlp.kinds import SPANS, Kind
from corevital_otel.otlp.quiet import quieted
from corevital_otel.otlp.redact import foreign, header_variable, watch_logs

_CREDENTIALS: Final = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"


class Ended(Exception):
    """The try is over and its verdict known: the SDK must not retry."""


class ListeningExporter:
    """Sends encoded items of one kind with the SDK's exporter for a destination.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a value that the SDK refuses.
    """

    def __init__(self, where: Destination, kind: Kind = SPANS) -> None:
        self._where = where
        self._kind = kind
        self._verdict: Verdict | None = None
        wire = "grpc" if where.protocol == "grpc" else "http"
        module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{wire}.{kind.module}")
        with reading_variables(kind.signal, where.url):
            _pass_encoded(module, kind)
            make = self._grpc if wire == "grpc" else self._http
            self._inner = make(getattr(module, kind.exporter), where)

    def send(self, items: Sequence[EncodedItem]) -> Verdict:
        """Send one request, once. Never raises."""
        self._verdict = None
        failure: Verdict | None = None
        succeeded = False
        with quieted() as lines:
            try:
                succeeded = self._inner.export(Encoded(items)).name == "SUCCESS"
            except Ended:
                pass
            except Exception as error:
                failure = error_verdict(error, self._kind.signal, self._where.url)
        if self._verdict is not None:
            return self._verdict
        if succeeded:  # this exporter does not show the answer
            return Verdict(delivered=True)
        cause = foreign("; ".join(dict.fromkeys(lines)), self._where.url)
        return failure or Verdict(message=cause or "the exporter does not say why")

    def _grpc(self, maker: Any, where: Destination) -> Any:
        exporter = maker(endpoint=where.url, insecure=where.insecure)
        if not listen(exporter, self._refused, self._accepted):
            warn_once("otlp:grpc", "this OpenTelemetry SDK does not show what a gRPC server answers: rejected items "
                      "are not counted; use a tested version")  # fmt: skip
        return exporter

    def _accepted(self, response: Any) -> None:
        self._verdict = accepted(response)

    def _refused(self, error: Any) -> Exception:
        self._verdict = grpc_verdict(error, self._kind.signal, self._where.url)
        return instead_of(error, final=True)

    def _http(self, maker: Any, where: Destination) -> Any:
        exporter = maker(endpoint=where.url, session=http_session(self._kind.signal, self._on_answer))
        listen_over_http(exporter, self._on_answer)
        return exporter

    def _on_answer(self, answer: Any, body: bytes | None) -> Exception | None:
        if isinstance(answer, Exception):
            self._verdict = error_verdict(answer, self._kind.signal, self._where.url)
        else:
            self._verdict = http_verdict(answer, body, self._kind.response, self._where.url)
        return None if self._verdict.delivered else Ended(self._verdict.message)

    def shutdown(self) -> None:
        """Close the connection."""
        with quieted():
            self._inner.shutdown()


class Encoded:
    """Encoded items in place of the SDK's, for its exporters."""

    def __init__(self, items: Sequence[EncodedItem]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)


def _pass_encoded(module: Any, kind: Kind) -> None:
    """Make an exporter's module accept :class:`Encoded` items. Others are encoded as before."""
    own = getattr(module, kind.encoder, None)
    if own is None:
        raise RuntimeError("this version of the OpenTelemetry exporters is not supported: use a tested one")
    if getattr(own, "takes_encoded", False):
        return

    def encode(batch: Any) -> Any:
        return kind.request(batch.items) if isinstance(batch, Encoded) else own(batch)

    encode.takes_encoded = True  # type: ignore[attr-defined]
    setattr(module, kind.encoder, encode)


@contextmanager
def reading_variables(signal: str, *urls: str) -> Iterator[None]:
    """What the SDK logs and raises while it reads the ``OTEL_*`` variables becomes warnings and a ``SettingsError``.

    Args:
        signal: ``TRACES``, ``METRICS`` or ``LOGS``, for the variable that is named.
        urls: endpoints that are in no variable.

    Raises:
        SettingsError: they raised.
    """
    watch_logs()
    with quieted() as lines:
        try:
            yield
        except SettingsError:
            raise
        except Exception as error:  # the SDK's parts raise what they like; none of their values is ours to list
            cause = foreign(error, *urls)
            raise SettingsError(f"an OTEL_* variable has a value that OpenTelemetry refuses: {cause}") from None
    for line in dict.fromkeys(lines):
        if line.startswith("Header format invalid"):
            variable = header_variable(signal)
            warn_once(f"otlp:{variable}", "a part of %s is not `name=value` with a URL-encoded value: it is ignored",
                      variable)  # fmt: skip
        else:
            warn_once(f"otlp:{line}", "the OTLP exporter: %s", foreign(line, *urls))


def http_session(signal: str, on_answer: Callable[[Any, bytes | None], Exception | None]) -> Any:
    """A session for an HTTP exporter of the SDK's; None if the user configured one.

    Args:
        signal: ``TRACES``, ``METRICS`` or ``LOGS``.
        on_answer: see :class:`corevital_otel.otlp.session.BoundedSession`.
    """
    if any(os.environ.get(_CREDENTIALS.format(which)) for which in ("", f"{signal}_")):
        return None
    from corevital_otel.otlp.session import BoundedSession

    return BoundedSession(on_answer)


def listen_over_http(exporter: Any, on_answer: Callable[[Any, bytes | None], Exception | None]) -> None:
    """See the answers to an exporter of the SDK's that has the user's session."""
    from corevital_otel.otlp.session import BoundedSession, bound

    transport = getattr(getattr(exporter, "_client", None), "_transport", None)
    session = getattr(transport, "_session", None) or getattr(exporter, "_session", None)
    if session is not None and not isinstance(session, BoundedSession):
        bound(session, on_answer)


def listen(exporter: Any, refused: Callable[[Any], Exception], accepted: Callable[[Any], None]) -> bool:
    """See a gRPC server's answers to an exporter of the SDK's. False if this SDK does not allow it.

    Args:
        exporter: the SDK's.
        refused: takes each ``RpcError``, and returns what the SDK gets in its place.
        accepted: takes each response.
    """
    stub, client = getattr(exporter, "_stub", None), getattr(exporter, "_client", None)
    if stub is None or client is None:
        return False
    exporter._stub = lambda channel: _Client(
        stub(channel), exporter, refused, accepted
    )  # it makes one when reconnecting
    exporter._client = _Client(client, exporter, refused, accepted)
    return True


class _Client:
    """A gRPC stub that reports each answer."""

    def __init__(
        self, inner: Any, exporter: Any, refused: Callable[[Any], Exception], accepted: Callable[[Any], None]
    ) -> None:
        self._inner = inner
        self._exporter = exporter
        self._refused = refused
        self._accepted = accepted

    def Export(self, *args: Any, **kwargs: Any) -> Any:
        import grpc  # type: ignore[import-untyped]

        try:
            response = self._inner.Export(*args, **kwargs)
        except grpc.RpcError as error:
            instead = self._refused(error)
            if error.code() is grpc.StatusCode.UNAVAILABLE and instead.code() is not error.code():  # type: ignore[attr-defined]
                _reconnect(self._exporter)
            raise instead from None
        self._accepted(response)
        return response


def _reconnect(exporter: Any) -> None:
    """What the SDK does before it retries: a channel may not recover from a server that was away."""
    if callable(again := getattr(exporter, "_initialize_channel_and_stub", None)):
        if (channel := getattr(exporter, "_channel", None)) is not None:
            channel.close()
        again()


def instead_of(error: Any, *, final: bool) -> Exception:
    """A gRPC error in place of another, without the parts that the SDK fails to read.

    Args:
        error: the other.
        final: with a code that the SDK does not try again.
    """
    import grpc

    class Instead(grpc.RpcError):  # type: ignore[misc]
        def code(self) -> Any:
            return grpc.StatusCode.FAILED_PRECONDITION if final else error.code()

        def details(self) -> str:
            return foreign(f"{error.code().name}: {error.details()}")

        def trailing_metadata(self) -> Any:
            return ()

    return Instead()
