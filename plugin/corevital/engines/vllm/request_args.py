"""A request's ``corevital_*`` arguments, which vLLM takes as ``vllm_xargs`` and keeps in ``extra_args``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from corevital.engines.request_args import RequestArgs
from corevital.engines.request_args import read as read_args
from corevital.engines.request_args import read_valid as read_valid_args

FIELD: Final = "vllm_xargs"
"""The field of a client's request."""

STOP_ON: Final = "corevital_stop_on"
"""The key of what ends the request early."""


def read(extra_args: Mapping[str, Any] | None) -> RequestArgs:
    """See :func:`corevital.engines.request_args.read`."""
    return read_args(extra_args, FIELD)


def read_valid(extra_args: Mapping[str, Any] | None) -> RequestArgs:
    """See :func:`corevital.engines.request_args.read_valid`: for the engine's core, whatever frontend is in front."""
    return read_valid_args(extra_args, FIELD)
