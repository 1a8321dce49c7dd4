"""A request's ``corevital_*`` arguments, which SGLang takes as ``custom_params``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from corevital.engines.request_args import RequestArgs
from corevital.engines.request_args import read as read_args
from corevital.engines.request_args import read_valid as read_valid_args
from corevital.log import warn_once

FIELD: Final = "custom_params"
"""The field of a client's request."""


def read(custom_params: Mapping[str, Any] | None) -> RequestArgs:
    """See :func:`corevital.engines.request_args.read`."""
    return read_args(custom_params, FIELD)


def read_valid(custom_params: Mapping[str, Any] | None) -> RequestArgs:
    """See :func:`corevital.engines.request_args.read_valid`: in the scheduler, whatever frontend is in front."""
    found = read_valid_args(custom_params, FIELD)
    if found.stop_on:
        warn_once("stop_on", "%s: corevital_stop_on has no effect: only vLLM can end a sequence early", FIELD)
    return found
