"""The arguments a request may carry: ``corevital_capture``, ``_return``, ``_sample``, ``_stop_on``, ``_tags`` and
``_traceparent``.

Each engine has its own field for them, which messages name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from corevital.log import warn_once
from corevital.supported import CAPTURE_MODES, NO_STOP, STOP_ON, stops_named
from corevital.text import cut, printable

_PREFIX: Final = "corevital_"

_MAX_TAGS: Final = 16
_MAX_TAG_LENGTH: Final = 128
_MAX_TEXT: Final = 2 * _MAX_TAGS * _MAX_TAG_LENGTH
"""Characters of all tags together, spaces around them included."""

_TRACEPARENT: Final = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[!-~]*)?")
"""Versions after 00 may add fields."""
_TRACEPARENT_LENGTH: Final = 55
_MAX_TRACEPARENT: Final = 256

_SHOWN: Final = 64
"""Characters of a client's text in a message."""


@dataclass(frozen=True, slots=True)
class RequestArgs:
    """What a request asked for; None or empty where it asked for nothing. Each tag is at most 256 bytes of UTF-8.

    ``verdict`` is ``corevital_return``: the answer is to have the verdict on itself. ``traceparent`` is the caller's
    span, for where the frontend passes on no trace headers. ``stop_on`` is what ends its sequences early, in place of
    the server's; None: the server's.
    """

    capture: str | None = None
    sample: bool | None = None
    tags: tuple[str, ...] = ()
    traceparent: str | None = None
    stop_on: tuple[str, ...] | None = None
    verdict: bool = False


def read(args: Mapping[str, Any] | None, field: str) -> RequestArgs:
    """The ``corevital_*`` arguments of a request; other keys are ignored.

    An unknown key with our prefix is logged once and refuses nothing: a newer version may know it.

    Args:
        args: all arguments of the request.
        field: the name of their field in a client's request.

    Raises:
        ValueError: one short line, safe for a terminal, that names the argument, the value and what is allowed.
    """
    return RequestArgs(**{_FIELDS.get(name, name): _READERS[name](value, field) for name, value in _given(args, field)})


def read_valid(args: Mapping[str, Any] | None, field: str) -> RequestArgs:
    """The same where no request can be refused any more: a wrong argument is ignored, and the first one is logged."""
    found = {}
    for name, value in _given(args, field):
        try:
            found[_FIELDS.get(name, name)] = _READERS[name](value, field)
        except ValueError as error:
            warn_once("wrong-xargs", "%s; ignored, further ones are not logged", error)
    return RequestArgs(**found)


def w3c_parent(text: object) -> str | None:
    """The caller's span in a ``traceparent``: version, trace id, span id and flags, 55 characters.

    Returns:
        None where the text is not a valid ``traceparent`` (https://www.w3.org/TR/trace-context/#traceparent-header).
    """
    match = _TRACEPARENT.fullmatch(text) if isinstance(text, str) and len(text) <= _MAX_TRACEPARENT else None
    if match is None or match[1] == "ff" or not match[2].strip("0") or not match[3].strip("0"):
        return None
    return None if match[1] == "00" and match[4] else match[0][:_TRACEPARENT_LENGTH]


def _given(args: Mapping[str, Any] | None, field: str) -> Iterator[tuple[str, Any]]:
    """Names, without the prefix, and values of our arguments that a request has."""
    if not args:
        return
    for name in args:
        if isinstance(name, str) and name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in _NAMES:
            _warn_of(name, field)
    for name in _NAMES:
        value = args.get(_PREFIX + name)
        if value is not None:
            yield name, value


def _capture(value: object, field: str) -> str:
    if not (isinstance(value, str) and value in CAPTURE_MODES):
        raise _refusal(field, "capture", value, f"one of {', '.join(CAPTURE_MODES)}")
    return value


def _switch(name: str) -> Callable[[object, str], bool]:
    """The reader of an argument that is on or off."""

    def read_switch(value: object, field: str) -> bool:
        if not (type(value) in (int, str) and value in (0, 1, "0", "1")):
            raise _refusal(field, name, value, "0 or 1")
        return value in (1, "1")

    return read_switch


def _tags_of(value: object, field: str) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise _refusal(field, "tags", value, "one comma-separated string")
    names = _tags(value)
    if names is None:
        raise ValueError(
            f"{field}: corevital_tags is too long: use at most {_MAX_TAGS} tags of {_MAX_TAG_LENGTH} characters"
        )
    return names


def _traceparent(value: object, field: str) -> str:
    parent = w3c_parent(value)
    if parent is None:
        raise _refusal(field, "traceparent", value, "a W3C traceparent, 00-<32 hex>-<16 hex>-<2 hex>")
    return parent


def _stop_on(value: object, field: str) -> tuple[str, ...]:
    try:
        return stops_named(value if isinstance(value, str) and len(value) <= _MAX_TEXT else "")
    except ValueError:
        raise _refusal(field, "stop_on", value, f"some of {', '.join(STOP_ON)}, or {NO_STOP}") from None


_READERS: Final[dict[str, Callable[[object, str], Any]]] = {
    "capture": _capture,
    "return": _switch("return"),
    "sample": _switch("sample"),
    "tags": _tags_of,
    "traceparent": _traceparent,
    "stop_on": _stop_on,
}
_NAMES: Final = tuple(_READERS)
_FIELDS: Final = {"return": "verdict"}
"""Fields of :class:`RequestArgs` whose names are not their arguments'."""


def _tags(text: str) -> tuple[str, ...] | None:
    """The tags in a text; None where they are too many or too long."""
    if len(text) > _MAX_TEXT:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) > _MAX_TAGS or any(len(name) > _MAX_TAG_LENGTH for name in names):
        return None
    return tuple(cut(name) for name in names)


def _refusal(field: str, name: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{field}: {_PREFIX}{name}={_shown(value)} is not allowed: use {allowed}")


def _shown(value: object) -> str:
    """A client's value; of anything but a short scalar only its type."""
    if isinstance(value, str):
        return printable(repr(value[:_SHOWN]), _SHOWN)
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and -(10**18) < value < 10**18):
        return repr(value)
    return f"({printable(type(value).__name__, _SHOWN)})"


def _warn_of(name: str, field: str) -> None:
    bare = name[: len(_PREFIX) + 32].removeprefix(_PREFIX)
    close = difflib.get_close_matches(bare, _NAMES, 1) or _NAMES
    warn_once("xargs", "%s: unknown argument %s, ignored: use %s; further ones are not logged",
              field, _shown(name), _PREFIX + ", _".join(close))  # fmt: skip
