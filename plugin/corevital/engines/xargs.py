"""A request's own wishes, from ``vllm_xargs``: ``corevital_capture``, ``corevital_sample``, ``corevital_tags``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from corevital.log import warn_once

_PREFIX: Final = "corevital_"
_NAMES: Final = ("capture", "sample", "tags")
_LONG: Final = 32
"""Characters of a strange name that are looked at."""
CAPTURE_MODES: Final = ("summary", "full", "on_risk")

_MAX_TAGS: Final = 16
_MAX_TAG_LENGTH: Final = 128


@dataclass(frozen=True, slots=True)
class RequestArgs:
    """What a request asked for; None or empty where it did not."""

    capture: str | None = None
    sample: bool | None = None
    tags: tuple[str, ...] = ()


def read(extra_args: Mapping[str, Any] | None) -> RequestArgs:
    """The ``corevital_*`` arguments of a request; any other key is none of our business.

    One that only looks like ours is said once and fails nothing: a newer version may know it.

    Raises:
        ValueError: one line that names the argument, the value and what is allowed.
    """
    if not extra_args:
        return RequestArgs()
    for name in extra_args:
        bare = str(name).removeprefix(_PREFIX)
        if bare != str(name) and bare not in _NAMES:
            close = difflib.get_close_matches(bare[:_LONG], _NAMES, 1) or _NAMES
            warn_once("xargs", "vllm_xargs: %.64r is no argument of ours and has no effect: use %s; others like it "
                      "are not said", name, " or ".join(f"{_PREFIX}{meant}" for meant in close))  # fmt: skip
    capture = extra_args.get("corevital_capture")
    if capture is not None and capture not in CAPTURE_MODES:
        raise ValueError(
            f"vllm_xargs: corevital_capture={capture!r} is not allowed: use one of {', '.join(CAPTURE_MODES)}"
        )
    sample = extra_args.get("corevital_sample")
    if sample is not None and (isinstance(sample, bool) or str(sample) not in ("0", "1")):
        raise ValueError(f"vllm_xargs: corevital_sample={sample!r} is not allowed: use 0 or 1")
    tags = extra_args.get("corevital_tags")
    if tags is not None and not isinstance(tags, str):
        raise ValueError(f"vllm_xargs: corevital_tags={tags!r} is not allowed: use one comma-separated string")
    names = tuple(name.strip() for name in (tags or "").split(",") if name.strip())
    if len(names) > _MAX_TAGS or any(len(name) > _MAX_TAG_LENGTH for name in names):
        raise ValueError(
            f"vllm_xargs: corevital_tags holds too much: use at most {_MAX_TAGS} tags of {_MAX_TAG_LENGTH} characters"
        )
    return RequestArgs(capture, None if sample is None else str(sample) == "1", names)
