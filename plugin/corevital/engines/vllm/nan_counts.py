"""Has vLLM count the NaN among each request's logits, for ``corevital_stop_on``.

It does with ``VLLM_COMPUTE_NANS_IN_LOGITS``. Model Runner V1 looks at that variable in each step, so a worker can have
it count only while a request asks for it; V2 looks at its start.
"""

from __future__ import annotations

import os
from typing import Any, Final

from corevital.engines.vllm.request_args import STOP_ON
from corevital.log import warn_once

_VARIABLE: Final = "VLLM_COMPUTE_NANS_IN_LOGITS"


def always() -> None:
    """Count in each step of the engines that this process starts from now on."""
    os.environ.setdefault(_VARIABLE, "1")


def are_on() -> bool:
    """Whether this process's engine counts them in each step, by its environment."""
    return os.environ.get(_VARIABLE, "0") != "0" or os.environ.get("VLLM_RAISE_ON_LOGIT_NANS", "0") != "0"


def asks(params: Any) -> bool:
    """Whether a request asks to end on a NaN. A client's value was checked at its admission."""
    return "nan" in str((params.extra_args or {}).get(STOP_ON, ""))


class Counting:
    """Has the V1 worker of this process count while a request of its batch asks for it."""

    def __init__(self) -> None:
        self._is_on = False

    def set(self, on: bool) -> None:
        """Count from the next step on, or no longer."""
        if on == self._is_on:
            return
        from vllm import envs

        self._is_on = on
        if not envs.VLLM_ENABLE_V1_MULTIPROCESSING:  # vLLM makes its own counters once, at its start
            warn_once(
                "nan in process",
                "corevital_stop_on=nan has no effect where the engine is in this process: set COREVITAL_STOP_ON=nan",
            )
            return
        if on:
            setattr(envs, _VARIABLE, True)  # an attribute hides what the module works out from the environment
        else:
            vars(envs).pop(_VARIABLE, None)
