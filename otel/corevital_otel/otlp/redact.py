"""Secrets out of text: what headers, endpoints and proxies hold never reaches a log line, of any library."""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote

from corevital.text import MAX_SHOWN, printable

HIDDEN: Final = "***"

_SIGNALS: Final = ("", "TRACES_", "METRICS_", "LOGS_")
_HEADERS: Final = tuple(f"OTEL_EXPORTER_OTLP_{signal}HEADERS" for signal in _SIGNALS)
_URLS: Final = (
    *(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT" for signal in _SIGNALS),
    *(name for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY") for name in (proxy, proxy.lower())),
)
_SCHEMES: Final = frozenset(("bearer", "basic", "token", "apikey", "digest", "https", "http"))
_SHORTEST: Final = 3
"""A shorter part of a secret is not replaced: it would garble every line, and is useless alone."""
_LONG: Final = 6
"""A part this long is replaced within words too."""
_USER: Final = re.compile(r"(?<=//)[^\s@]{1,512}@|[^\s/@:'\"(]{1,128}:[^\s/@'\"]{0,256}@")
_READ: Final = 16_384
_MARGIN: Final = 1_024
"""Characters of a foreign text that are read, and of its end that are not shown where it is longer: half a secret."""


def redacted(text: object, *urls: str) -> str:
    """``text`` with every secret of the exporters replaced by ``***``.

    Args:
        text: any object; its ``str``.
        urls: endpoints that are in no variable.
    """
    shown = str(text)
    for secret in sorted(set(_secrets(os.environ, urls)), key=len, reverse=True):
        if len(secret) >= _LONG:
            shown = re.sub(re.escape(secret), HIDDEN, shown, flags=re.IGNORECASE)
        else:
            shown = re.sub(rf"(?<![A-Za-z0-9_]){re.escape(secret)}(?![A-Za-z0-9_])", HIDDEN, shown)
    return _USER.sub("", shown) if "@" in shown else shown


def foreign(text: object, *urls: str) -> str:
    """Text of a backend or a library for our log: in one line, of bounded length, without secrets."""
    whole = str(text)
    shown = redacted(whole[:_READ], *urls)
    if len(whole) > _READ:
        shown = shown[:-_MARGIN]
    return printable(" ".join(shown.split()), MAX_SHOWN)


def header_variable(signal: str) -> str:
    """The variable that headers of a signal (``TRACES``, ``METRICS``, ``LOGS``) come from."""
    own = f"OTEL_EXPORTER_OTLP_{signal}_HEADERS"
    return own if os.environ.get(own) else "OTEL_EXPORTER_OTLP_HEADERS"


def endpoint_variable(signal: str) -> str:
    """The variable that the endpoint of a signal comes from."""
    own = f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"
    return own if os.environ.get(own) else "OTEL_EXPORTER_OTLP_ENDPOINT"


class Redacting(logging.Filter):
    """Takes secrets out of records, their tracebacks included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        before = record.getMessage()
        if (after := redacted(before)) != before:
            record.msg, record.args = after, None
        if record.exc_info and (error := record.exc_info[1]) is not None:
            text = str(error)
            if (clean := redacted(text)) != text or error.__cause__ is not None or error.__context__ is not None:
                shown = type(type(error).__name__, (Exception,), {"__module__": type(error).__module__})(clean)
                record.exc_info = (type(shown), shown, error.__traceback__)
        return True


_FILTER: Final = Redacting()


def watch_logs() -> None:
    """Remove secrets from our log lines from now on. Idempotent."""
    for name in ("corevital", "corevital.otlp"):
        logging.getLogger(name).addFilter(_FILTER)


def _secrets(env: Mapping[str, str], urls: tuple[str, ...]) -> Iterator[str]:
    for name in _HEADERS:
        for part in env.get(name, "").split(","):
            for value in _values(part):
                yield from _forms(value)
    for url in (*(env.get(name, "") for name in _URLS), *urls):
        for value in _url_secrets(url):
            yield from _forms(value)


def _values(part: str) -> Iterator[str]:
    """What may be the value in ``name=value``, or where a user wrote ``name: value`` or only a value."""
    for separator in "=:":
        _, found, value = part.partition(separator)
        if found:
            yield value
    if "=" not in part and ":" not in part:
        yield part


def _url_secrets(url: str) -> Iterator[str]:
    """User and password, query and fragment, also where the password has an unescaped ``/``, ``?`` or ``#``."""
    rest = url.rpartition("://")[2]
    user, at, after = rest.rpartition("@")
    if at:
        yield user
        name, _, password = user.partition(":")
        yield from (name, password, *re.split("[/?#@:]", password))
    else:
        after = rest
    for mark in "?#":
        _, found, tail = after.partition(mark)
        if found:
            yield from (tail, *re.split("[&=#;]", tail))


def _forms(value: str) -> Iterator[str]:
    """A secret whole and in parts, as it is written and as it is sent."""
    for form in {value, unquote(value)}:
        words = re.split(r"[\s\x00-\x20\x7f]+", form)
        for word in (form.strip(), *words):
            if len(word) >= _SHORTEST and word.lower() not in _SCHEMES:
                yield word
                yield repr(word)[1:-1]
        for word in words[1:]:
            try:
                decoded = base64.b64decode(word, validate=True).decode()
            except (binascii.Error, ValueError):
                continue
            yield from (part for part in (decoded, *decoded.split(":")) if len(part) >= _SHORTEST)
