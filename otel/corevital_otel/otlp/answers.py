"""What a backend's answer to an OTLP request means, by the OTLP specification.

Only a valid answer is a delivery: a status of 2xx with an OTLP message or an empty body. A backend's data is not
trusted: numbers are clamped, texts become one line of bounded length without secrets.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]

from corevital_otel.otlp.redact import endpoint_variable, foreign, header_variable

LONGEST_WAIT_S: Final = 300.0
"""A longer wait that a backend asks for is cut to this."""

_TRANSIENT_STATUS: Final = frozenset((429, 502, 503, 504))
_DIVISIBLE_STATUS: Final = frozenset((400, 413, 422))
_UNSUPPORTED_STATUS: Final = frozenset((404, 405, 501))
_TRANSIENT_CODES: Final = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)
"""The OTLP specification's lists; RESOURCE_EXHAUSTED is transient only where the server says when to come back."""
_EXHAUSTED: Final = "RESOURCE_EXHAUSTED"
_DIVISIBLE_CODES: Final = frozenset(("INVALID_ARGUMENT", _EXHAUSTED))
_STATUS_FIELDS: Final = 3
_RETRY_INFO: Final = "google.rpc.retryinfo-bin"
_DETAILS: Final = "grpc-status-details-bin"


@dataclass(slots=True)
class Verdict:
    """The outcome of one try.

    Attributes:
        delivered: the backend accepted the request, whole or in part.
        transient: the specification allows a retry.
        divisible: the backend may refuse only a part of the request, or its size.
        too_large: the backend refuses the size, or may.
        unsupported: the backend seems not to take this signal.
        retry_after_s: how long the backend asked to wait, seconds, from 0 to :data:`LONGEST_WAIT_S`.
        rejected: items it rejected out of a request that it accepted; not negative.
        message: its reason for that, or for refusing the request; one line, without secrets.
    """

    delivered: bool = False
    transient: bool = False
    divisible: bool = False
    too_large: bool = False
    unsupported: bool = False
    retry_after_s: float | None = None
    rejected: int = 0
    message: str = ""


def accepted(response: Any) -> Verdict:
    """The verdict of an ``Export…ServiceResponse``."""
    partial = response.partial_success
    rejected = max(getattr(partial, f"rejected_{items}", 0) for items in ("spans", "data_points", "log_records"))
    return Verdict(delivered=True, rejected=max(rejected, 0), message=foreign(partial.error_message))


def http_verdict(answer: Any, body: bytes | None, response_type: Any, *urls: str) -> Verdict:
    """The verdict of an HTTP answer.

    Args:
        answer: the ``requests.Response``.
        body: its decoded content; None where that was too long or cannot be decoded.
        response_type: the message of an answer to this request.
        urls: endpoints that are in no variable, for :func:`corevital_otel.otlp.redact.redacted`.
    """
    status = answer.status_code
    message = f"HTTP {status} {foreign(answer.reason or '', *urls)}".rstrip()
    if status in _TRANSIENT_STATUS:
        wait_s = retry_after_s(answer.headers.get("Retry-After"))
        return Verdict(transient=True, retry_after_s=wait_s, message=message)
    if 300 <= status < 400:
        return Verdict(message=f"it answers {status}: is a login in between, or is the endpoint's path wrong?")
    if not 200 <= status < 300:
        return Verdict(
            divisible=status in _DIVISIBLE_STATUS,
            too_large=status == 413,
            unsupported=status in _UNSUPPORTED_STATUS,
            message=message,
        )
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if (found := _message(kind, body, response_type)) is not None:
        return accepted(found)
    shown = foreign(kind) if kind else "no Content-Type"
    return Verdict(message=f"it answers {status} with {shown}, which is not an OTLP answer: is this a web page's port, "
                   "or is a login in between?")  # fmt: skip


def _message(kind: str, body: bytes | None, response_type: Any) -> Any | None:
    """The OTLP message in an answer; an empty one for nothing; None where there is something else."""
    if body is None or kind in ("text/html", "application/xhtml+xml"):
        return None
    if not body:
        return response_type()
    try:
        if kind in ("application/x-protobuf", "application/protobuf"):
            found = response_type.FromString(body)
            # a `google.rpc.Status`, which reports an error, has other fields
            return None if any(field.field_number <= _STATUS_FIELDS for field in UnknownFieldSet(found)) else found
        if kind == "application/json":
            return _from_json(body, response_type)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError):
        pass
    return None


def _from_json(body: bytes, response_type: Any) -> Any | None:
    document = json.loads(body)
    if document is None:  # what a web framework makes of an empty answer
        return response_type()
    # An object's unknown fields are ignored, by the specification: Langfuse answers with its queue's job, or
    # {"message": "OK"}. One that names an error is a refusal, with any status.
    if not isinstance(document, dict) or _names_error({str(name).lower(): its for name, its in document.items()}):
        return None
    return json_format.ParseDict(document, response_type(), ignore_unknown_fields=True)


def _names_error(document: dict[str, Any]) -> bool:
    """Whether a JSON object of another API reports an error."""
    return (
        any(document.get(name) for name in ("error", "errors", "detail", "code"))
        or document.get("success") is False
        or str(document.get("status", "")).lower() in ("error", "fail", "failed")
    )


def grpc_verdict(error: Any, signal: str, *urls: str) -> Verdict:
    """The verdict of a gRPC ``RpcError``. For the arguments see :func:`error_verdict`."""
    code = error.code().name
    if error.details() == "Invalid metadata":  # raised by the client, before anything is sent
        return _unsendable_header(signal)
    wait_s = retry_info_s(error.trailing_metadata() or ())
    exhausted = code == _EXHAUSTED
    transient = code in _TRANSIENT_CODES or (exhausted and wait_s is not None)
    return Verdict(
        transient=transient,
        divisible=not transient and code in _DIVISIBLE_CODES,
        too_large=exhausted and not transient,
        unsupported=code == "UNIMPLEMENTED",
        retry_after_s=wait_s if transient else None,
        message=f"{code}: {foreign(error.details() or 'no details', *urls)}",
    )


def error_verdict(error: BaseException, signal: str, *urls: str) -> Verdict:
    """The verdict of an exception in the place of an answer.

    Args:
        error: what an HTTP or gRPC client raised.
        signal: ``TRACES``, ``METRICS`` or ``LOGS``, for the variable that is named.
        urls: endpoints that are in no variable.
    """
    import requests
    from urllib3.exceptions import HTTPError, LocationParseError

    if isinstance(error, (requests.exceptions.InvalidHeader, UnicodeError)) or "metadata was invalid" in str(error):
        return _unsendable_header(signal)
    if isinstance(error, requests.exceptions.InvalidProxyURL):
        return Verdict(message="HTTP_PROXY or HTTPS_PROXY is not a URL that can be used")
    unusable = (
        requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema,
        LocationParseError,
    )  # fmt: skip
    if isinstance(error, unusable):
        return Verdict(message=f"{endpoint_variable(signal)} is not a URL that can be used")
    may_pass = isinstance(
        error,
        (requests.exceptions.ConnectionError, requests.exceptions.Timeout, requests.exceptions.ChunkedEncodingError,
         HTTPError),
    )  # fmt: skip
    bottom = innermost(error)
    return Verdict(transient=may_pass, message=foreign(str(bottom) or type(bottom).__name__, *urls))


def _unsendable_header(signal: str) -> Verdict:
    return Verdict(message=f"{header_variable(signal)} holds a value that cannot be sent as a header")


def innermost(error: BaseException) -> BaseException:
    """The error at the bottom: requests and urllib3 wrap the system's own in theirs."""
    for _ in range(20):
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None:
            break
        error = inner
    return error


def retry_after_s(header: str | None) -> float | None:
    """A ``Retry-After`` header, seconds or a date, as seconds; None where there is none that can be read."""
    if not header:
        return None
    header = header.strip()[:64]
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            seconds = moment.timestamp() - time.time()
        except (TypeError, ValueError, OverflowError, OSError):
            return None
        return _clamped(seconds)
    return _clamped(seconds) if math.isfinite(seconds) and seconds >= 0 else None


def retry_info_s(metadata: Any) -> float | None:
    """The wait that a gRPC error's ``RetryInfo`` asks for, seconds; 0 where it names none; None without one."""
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

    found = None
    try:
        for key, value in metadata:
            if not isinstance(value, bytes):
                continue
            if key == _RETRY_INFO:
                found = RetryInfo.FromString(value)
            elif key == _DETAILS and found is None:
                for detail in Status.FromString(value).details:
                    if detail.Is(RetryInfo.DESCRIPTOR):
                        found = RetryInfo.FromString(detail.value)
    except (DecodeError, TypeError, ValueError):
        return None
    if found is None:
        return None
    return _clamped(found.retry_delay.seconds + found.retry_delay.nanos / 1e9)


def _clamped(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_WAIT_S)
