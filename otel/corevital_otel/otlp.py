"""The SDK's own exporter for a destination, made to say what became of a try.

The SDK's exporters retry what OTLP calls transient, with back-off, for as long as ``OTEL_EXPORTER_OTLP_TIMEOUT``, and
honour a wait that the server asks for if it fits into that. They keep to themselves why they failed, whether waiting
would help, and how many spans the server rejected out of a request it accepted: that is what is added here.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace.export import SpanExporter

from corevital.log import warn_once
from corevital_otel.destination import Destination, destination, endpoint, protocol, shown

__all__ = ["Destination", "ListeningExporter", "Verdict", "destination", "endpoint", "protocol", "shown"]

_TRANSIENT_STATUS: Final = frozenset((429, 502, 503, 504))
_TRANSIENT_CODES: Final = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)
"""The OTLP specification's lists; RESOURCE_EXHAUSTED is transient only where the server says when to come back."""
_EXHAUSTED: Final = "RESOURCE_EXHAUSTED"
_RETRY_INFO: Final = "google.rpc.retryinfo-bin"
_CREDENTIALS: Final = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"
_USER: Final = re.compile(r"[^\s/@]+@")


@dataclass(slots=True)
class Verdict:
    """What the server said of the last try.

    Attributes:
        transient: the specification allows to try again.
        retry_after_s: how long the server asked to wait, seconds.
        rejected: spans it refused out of a request that it took.
        message: its words on that, or why it did not take the request, if known.
    """

    transient: bool = True
    retry_after_s: float | None = None
    rejected: int = 0
    message: str = ""

    def accept(self, response: ExportTraceServiceResponse) -> None:
        """The request was taken, whole or in part."""
        self.transient = False
        self.rejected = response.partial_success.rejected_spans
        self.message = response.partial_success.error_message


class ListeningExporter:
    """The SDK's exporter for a destination, and the :class:`Verdict` of its last try."""

    def __init__(self, where: Destination) -> None:
        self.verdict = Verdict()
        self.inner: SpanExporter = self._grpc(where) if where.protocol == "grpc" else self._http(where)

    def begin(self) -> None:
        """A new export: until the server answers, what went wrong is the connection, which may come back."""
        self.verdict = Verdict()

    def _grpc(self, where: Destination) -> SpanExporter:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=where.url, insecure=where.insecure)
        if not listen(exporter, self.refused, self._accepted):
            warn_once("otlp:grpc", "this OpenTelemetry SDK does not show what a gRPC server answers: rejected spans "
                      "are not counted; use a version that was tried")  # fmt: skip
        return exporter

    def _accepted(self, response: Any) -> None:
        self.verdict.accept(response)

    def _http(self, where: Destination) -> SpanExporter:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=where.url, session=http_session("TRACES", self._heard))

    def _heard(self, answer: Any) -> None:
        self.verdict = Verdict(message=failure(answer))
        if isinstance(answer, Exception):  # the connection may come back
            return
        verdict = self.verdict
        verdict.transient = answer.status_code in _TRANSIENT_STATUS
        if verdict.transient:
            verdict.retry_after_s = _seconds(answer.headers.get("Retry-After"))
        elif answer.ok and answer.headers.get("Content-Type", "").startswith("application/x-protobuf"):
            try:
                verdict.accept(ExportTraceServiceResponse.FromString(answer.content))
            except Exception:  # it took them; what it says of it is not readable
                verdict.transient = False

    def refused(self, error: Any) -> bool:
        """Note a gRPC error. True if it is permanent though the SDK would go on trying."""
        code = error.code().name
        metadata = dict(error.trailing_metadata() or ())
        asked = _retry_info(metadata.get(_RETRY_INFO))
        exhausted_for_good = code == _EXHAUSTED and asked is None
        transient = code in _TRANSIENT_CODES or (code == _EXHAUSTED and not exhausted_for_good)
        self.verdict = Verdict(transient=transient, retry_after_s=asked, message=failure(error))
        return exhausted_for_good


def http_session(signal: str, heard: Callable[[Any], object]) -> Any:
    """A session for an HTTP exporter of the SDK's; None where the user has named one of their own.

    Args:
        signal: ``TRACES`` or ``METRICS``.
        heard: is told of each answer, a ``requests.Response`` or the exception in its place.
    """
    import requests

    if any(os.environ.get(_CREDENTIALS.format(which)) for which in ("", f"{signal}_")):
        return None

    class Session(requests.Session):
        """Obeys ``OTEL_EXPORTER_OTLP_CERTIFICATE`` even where ``REQUESTS_CA_BUNDLE`` is set for all others."""

        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            own = self.verify if verify is None and isinstance(self.verify, str) else verify
            return super().merge_environment_settings(url, proxies, stream, own, cert)

        def send(self, request: Any, **kwargs: Any) -> Any:
            try:
                response = super().send(request, **kwargs)
            except Exception as error:
                heard(error)
                raise
            heard(response)
            return response

    return Session()


def failure(answer: Any) -> str:
    """What went wrong by a ``requests.Response`` or the exception in its place; empty where nothing did."""
    if callable(getattr(answer, "details", None)):  # a gRPC error; it may hold the target, and that a password
        return f"{answer.code().name}: {_USER.sub('', str(answer.details()))}"
    if not isinstance(answer, Exception):
        return "" if answer.ok else f"HTTP {answer.status_code} {answer.reason}"
    error: BaseException = answer
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner  # requests and urllib3 wrap the system's own words in theirs
    return str(error) or type(error).__name__


def listen(exporter: Any, refused: Callable[[Any], bool], accepted: Callable[[Any], None]) -> bool:
    """Hear what a gRPC server answers an exporter of the SDK's. False where this SDK does not let us.

    Args:
        exporter: the SDK's.
        refused: is told of each ``RpcError``; True if it is permanent though the SDK would go on trying.
        accepted: is told of each response.
    """
    stub, client = getattr(exporter, "_stub", None), getattr(exporter, "_client", None)
    if stub is None or client is None:
        return False
    exporter._stub = lambda channel: _Client(stub(channel), refused, accepted)  # it reconnects, and makes a new one
    exporter._client = _Client(client, refused, accepted)
    return True


class _Client:
    """A gRPC stub that tells what it hears."""

    def __init__(self, inner: Any, refused: Callable[[Any], bool], accepted: Callable[[Any], None]) -> None:
        self._inner = inner
        self._refused = refused
        self._accepted = accepted

    def Export(self, *args: Any, **kwargs: Any) -> Any:
        import grpc  # type: ignore[import-untyped]

        try:
            response = self._inner.Export(*args, **kwargs)
        except grpc.RpcError as error:
            if self._refused(error):
                raise _permanent(error) from None
            raise
        self._accepted(response)
        return response


def _permanent(error: Any) -> Exception:
    import grpc

    class Permanent(grpc.RpcError):  # type: ignore[misc]
        """The error with a code that the SDK does not retry: the server has not said that waiting helps."""

        def code(self) -> Any:
            return grpc.StatusCode.FAILED_PRECONDITION

        def details(self) -> str:
            return f"{_EXHAUSTED}: {error.details()}"

        def trailing_metadata(self) -> Any:
            return error.trailing_metadata() or ()

    return Permanent()


def _retry_info(data: bytes | None) -> float | None:
    if data is None:
        return None
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]

    delay = RetryInfo.FromString(data).retry_delay
    return float(delay.seconds + delay.nanos / 1e9)


def _seconds(retry_after: str | None) -> float | None:
    """A ``Retry-After`` header, in seconds or as a date; None where there is none that can be read."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None
