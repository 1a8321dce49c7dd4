"""A request's own wishes, from ``vllm_xargs``: ``corevital_capture``, ``corevital_sample``, ``corevital_tags``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from corevital.log import warn_once
from corevital.text import cut, printable

_PREFIX: Final = "corevital_"
_NAMES: Final = ("capture", "sample", "tags")
CAPTURE_MODES: Final = ("summary", "full", "on_risk")

_MAX_TAGS: Final = 16
_MAX_TAG_LENGTH: Final = 128
_MAX_TEXT: Final = 2 * _MAX_TAGS * _MAX_TAG_LENGTH
"""Characters of all tags together, spaces around them included."""

_SHOWN: Final = 64
"""Characters of a client's own words in a message."""


@dataclass(frozen=True, slots=True)
class RequestArgs:
    """What a request asked for; None or empty where it did not. Each tag is at most 256 bytes of UTF-8."""

    capture: str | None = None
    sample: bool | None = None
    tags: tuple[str, ...] = ()


def read(extra_args: Mapping[str, Any] | None) -> RequestArgs:
    """The ``corevital_*`` arguments of a request; any other key is none of our business.

    One that only looks like ours is logged once and fails nothing: a newer version may know it.

    Raises:
        ValueError: one short line, fit for a terminal, that names the argument, the value and what is allowed.
    """
    if not extra_args:
        return RequestArgs()
    for name in extra_args:
        if isinstance(name, str) and name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in _NAMES:
            _warn_of(name)
    capture = extra_args.get("corevital_capture")
    if capture is not None and not (isinstance(capture, str) and capture in CAPTURE_MODES):
        raise _refusal("capture", capture, f"one of {', '.join(CAPTURE_MODES)}")
    sample = extra_args.get("corevital_sample")
    if sample is not None and not (type(sample) in (int, str) and sample in (0, 1, "0", "1")):
        raise _refusal("sample", sample, "0 or 1")
    tags = extra_args.get("corevital_tags")
    if tags is not None and not isinstance(tags, str):
        raise _refusal("tags", tags, "one comma-separated string")
    names = _tags(tags or "")
    if names is None:
        raise ValueError(
            f"vllm_xargs: corevital_tags holds too much: use at most {_MAX_TAGS} tags of {_MAX_TAG_LENGTH} characters"
        )
    return RequestArgs(capture, None if sample is None else sample in (1, "1"), names)


def _tags(text: str) -> tuple[str, ...] | None:
    """The tags in a text; None where they are too many or too long."""
    if len(text) > _MAX_TEXT:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) > _MAX_TAGS or any(len(name) > _MAX_TAG_LENGTH for name in names):
        return None
    return tuple(cut(name) for name in names)


def _refusal(name: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"vllm_xargs: {_PREFIX}{name}={_shown(value)} is not allowed: use {allowed}")


def _shown(value: object) -> str:
    """A client's value; of anything but a short scalar only its type."""
    if isinstance(value, str):
        return printable(repr(value[:_SHOWN]), _SHOWN)
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and -(10**18) < value < 10**18):
        return repr(value)
    return f"({printable(type(value).__name__, _SHOWN)})"


def _warn_of(name: str) -> None:
    bare = name[: len(_PREFIX) + 32].removeprefix(_PREFIX)
    close = difflib.get_close_matches(bare, _NAMES, 1) or _NAMES
    warn_once("xargs", "vllm_xargs: unknown argument %s, ignored: use %s; further ones are not logged",
              _shown(name), " or ".join(f"{_PREFIX}{meant}" for meant in close))  # fmt: skip
