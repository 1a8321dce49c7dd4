"""The SDK's own exporter for a destination, made to send what is encoded already and to report what became of a try.

The SDK's exporters know every ``OTEL_EXPORTER_OTLP_*`` variable. They do not show why they failed, whether waiting
would help, and how many spans the backend rejected; and they try again by themselves, without a word. Here a try is
one request, and its :class:`Verdict` is what the backend answered.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from corevital.log import warn_once
from corevital_otel.answers import Verdict, accepted, error_verdict, grpc_verdict, http_verdict
from corevital_otel.destination import Destination, destination, endpoint, protocol, shown
from corevital_otel.encoding import EncodedSpan, request
from corevital_otel.errors import SettingsError
from corevital_otel.overheard import overheard
from corevital_otel.redact import foreign, header_variable, watch_logs

__all__ = ["Destination", "ListeningExporter", "Verdict", "destination", "endpoint", "protocol", "shown"]

_CREDENTIALS: Final = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"


class Ended(Exception):
    """The try is over, and its verdict is known: the SDK is not to try again."""


class ListeningExporter:
    """Sends spans with the SDK's exporter for a destination.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a value that the SDK refuses.
    """

    def __init__(self, where: Destination) -> None:
        self._where = where
        self._verdict: Verdict | None = None
        wire = "grpc" if where.protocol == "grpc" else "http"
        module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{wire}.trace_exporter")
        with reading_variables("TRACES", where.url):
            _pass_encoded(module)
            make = self._grpc if wire == "grpc" else self._http
            self._inner: SpanExporter = make(module.OTLPSpanExporter, where)

    def send(self, spans: Sequence[EncodedSpan]) -> Verdict:
        """Send one request, once. Never raises."""
        self._verdict = None
        failure: Verdict | None = None
        with overheard() as said:
            try:
                result = self._inner.export(Encoded(spans))  # type: ignore[arg-type]
            except Ended:
                result = SpanExportResult.FAILURE
            except Exception as error:
                result = SpanExportResult.FAILURE
                failure = error_verdict(error, "TRACES", self._where.url)
        if self._verdict is not None:
            return self._verdict
        if result is SpanExportResult.SUCCESS:  # an exporter that does not let us hear
            return Verdict(delivered=True)
        cause = foreign("; ".join(dict.fromkeys(said)), self._where.url)
        return failure or Verdict(message=cause or "the exporter does not say why")

    def _grpc(self, maker: Any, where: Destination) -> SpanExporter:
        exporter: SpanExporter = maker(endpoint=where.url, insecure=where.insecure)
        if not listen(exporter, self._refused, self._accepted):
            warn_once("otlp:grpc", "this OpenTelemetry SDK does not show what a gRPC server answers: rejected spans "
                      "are not counted; use a tested version")  # fmt: skip
        return exporter

    def _accepted(self, response: Any) -> None:
        self._verdict = accepted(response)

    def _refused(self, error: Any) -> Exception:
        self._verdict = grpc_verdict(error, "TRACES", self._where.url)
        return instead_of(error, final=True)

    def _http(self, maker: Any, where: Destination) -> SpanExporter:
        exporter: SpanExporter = maker(endpoint=where.url, session=http_session("TRACES", self._heard))
        listen_over_http(exporter, self._heard)
        return exporter

    def _heard(self, answer: Any, body: bytes | None) -> Exception | None:
        if isinstance(answer, Exception):
            self._verdict = error_verdict(answer, "TRACES", self._where.url)
        else:
            self._verdict = http_verdict(answer, body, ExportTraceServiceResponse, self._where.url)
        return None if self._verdict.delivered else Ended(self._verdict.message)

    def shutdown(self) -> None:
        """Let go of the connection."""
        with overheard():
            self._inner.shutdown()


class Encoded:
    """Spans that are encoded already, in the place of the SDK's own, through its exporters."""

    def __init__(self, spans: Sequence[EncodedSpan]) -> None:
        self.spans = spans

    def __len__(self) -> int:
        return len(self.spans)


def _pass_encoded(module: Any) -> None:
    """Have an exporter's module take :class:`Encoded` spans. Other spans are encoded as ever."""
    own = getattr(module, "encode_spans", None)
    if own is None:
        raise RuntimeError("this version of the OpenTelemetry exporters is not supported: use a tested one")
    if getattr(own, "takes_encoded", False):
        return

    def encode_spans(spans: Any) -> ExportTraceServiceRequest:
        return request(spans.spans) if isinstance(spans, Encoded) else own(spans)

    encode_spans.takes_encoded = True  # type: ignore[attr-defined]
    module.encode_spans = encode_spans


@contextmanager
def reading_variables(signal: str, *urls: str) -> Iterator[None]:
    """What the SDK logs and raises while it reads the ``OTEL_*`` variables becomes warnings and an error of ours.

    Args:
        signal: ``TRACES`` or ``METRICS``, for the variable that is named.
        urls: endpoints that are in no variable.

    Raises:
        SettingsError: they raised.
    """
    watch_logs()
    with overheard() as said:
        try:
            yield
        except SettingsError:
            raise
        except Exception as error:  # the SDK's parts raise what they like; none of their values is ours to list
            cause = foreign(error, *urls)
            raise SettingsError(f"an OTEL_* variable has a value that OpenTelemetry refuses: {cause}") from None
    for line in dict.fromkeys(said):
        if line.startswith("Header format invalid"):
            variable = header_variable(signal)
            warn_once(f"otlp:{variable}", "a part of %s is not `name=value` with a URL-encoded value: it is ignored",
                      variable)  # fmt: skip
        else:
            warn_once(f"otlp:{line}", "the OTLP exporter: %s", foreign(line, *urls))


def http_session(signal: str, heard: Callable[[Any, bytes | None], Exception | None]) -> Any:
    """A session for an HTTP exporter of the SDK's; None where the user has named one of their own.

    Args:
        signal: ``TRACES`` or ``METRICS``.
        heard: see :class:`corevital_otel.session.BoundedSession`.
    """
    if any(os.environ.get(_CREDENTIALS.format(which)) for which in ("", f"{signal}_")):
        return None
    from corevital_otel.session import BoundedSession

    return BoundedSession(heard)


def listen_over_http(exporter: Any, heard: Callable[[Any, bytes | None], Exception | None]) -> None:
    """Hear what an HTTP server answers an exporter of the SDK's that has a session of the user's own."""
    from corevital_otel.session import BoundedSession, bound

    transport = getattr(getattr(exporter, "_client", None), "_transport", None)
    session = getattr(transport, "_session", None) or getattr(exporter, "_session", None)
    if session is not None and not isinstance(session, BoundedSession):
        bound(session, heard)


def listen(exporter: Any, refused: Callable[[Any], Exception], accepted: Callable[[Any], None]) -> bool:
    """Hear what a gRPC server answers an exporter of the SDK's. False where this SDK does not let us.

    Args:
        exporter: the SDK's.
        refused: is given each ``RpcError``, and returns what the SDK gets in its place.
        accepted: is given each response.
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
    """A gRPC stub that shows what it hears."""

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
    """What the SDK does where it would try again: a channel may not recover of a server that was away."""
    if callable(again := getattr(exporter, "_initialize_channel_and_stub", None)):
        if (channel := getattr(exporter, "_channel", None)) is not None:
            channel.close()
        again()


def instead_of(error: Any, *, final: bool) -> Exception:
    """A gRPC error in the place of another, with nothing in it that the SDK reads and cannot bear.

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
