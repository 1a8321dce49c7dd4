"""Warns where requests reach a worker without a stamp: neither their frontend nor the engine core was followed.

Such requests are not measured, and without this nobody would know.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from corevital.engines.vllm.request_args import read
from corevital.frames.stamp import Stamp
from corevital.log import warn_once

if TYPE_CHECKING:
    from vllm import SamplingParams

_PATIENCE_S: Final = 60.0


def frontend(environ: Mapping[str, str]) -> str:
    """The frontend that the environment chooses, as far as a worker can know it."""
    if environ.get("VLLM_USE_RUST_FRONTEND", "0").strip() not in ("", "0"):
        return "vLLM's Rust frontend (VLLM_USE_RUST_FRONTEND)"
    return "the frontend (vLLM's Python API server, or another client of the engine core)"


class Unobserved:
    """Looks at each request that enters a worker's batch, until one is stamped or the warning is logged.

    Args:
        clock: seconds, steady.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._is_over = False

    def note(self, params: SamplingParams, stamp: Stamp | None) -> None:
        """A request enters the batch. One that asked not to be measured says nothing of its frontend."""
        if self._is_over:
            return
        if stamp is not None:
            self._is_over = True
        elif read(params.extra_args).sample is False:
            return
        elif self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since >= _PATIENCE_S:
            self._is_over = True
            warn_once(
                "unobserved",
                "no request is measured: for %.0f s none had a stamp of %s or of the engine core: where the core "
                "logged no warning of corevital, install the same corevital in its environment, with a checked version "
                "of vLLM; or use vLLM's Python API server",
                _PATIENCE_S,
                frontend(os.environ),
            )
