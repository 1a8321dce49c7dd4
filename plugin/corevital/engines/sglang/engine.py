"""SGLang as the eight things of :mod:`corevital.engines.protocol`. Imports neither SGLang nor torch."""

from __future__ import annotations

from typing import Any

from corevital.engines.request_args import RequestArgs
from corevital.engines.sglang import request_args as sglang_args
from corevital.engines.sglang.facts import STAGES, facts
from corevital.engines.sglang.register import register
from corevital.engines.sglang.start import follow, observe, reports
from corevital.engines.sglang.watch import carried, carry

__all__ = ["STAGES", "carried", "carry", "facts", "follow", "observe", "register", "reports", "request_args"]


def request_args(params: Any) -> RequestArgs:
    """See :meth:`corevital.engines.protocol.Engine.request_args`; SGLang's ``SamplingParams`` carries them."""
    return sglang_args.read(params.custom_params)
