"""How a stamp travels: in ``SamplingParams.extra_args``, the only field that reaches every logits processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from corevital.frames.stamp import Stamp, parse

if TYPE_CHECKING:
    from vllm import SamplingParams

EXTRA_ARG: Final = "corevital"
"""The key in ``extra_args``. A client can send it too, so it is always replaced."""


def carry(params: SamplingParams, stamp: Stamp | None) -> None:
    """Put a stamp into the parameters, in place of any that is there; None removes it.

    ``extra_args`` is replaced, not changed: sequences of one request may share it.
    """
    kept = {key: value for key, value in (params.extra_args or {}).items() if key != EXTRA_ARG}
    params.extra_args = kept if stamp is None else {**kept, EXTRA_ARG: str(stamp)}


def carried(params: SamplingParams) -> Stamp | None:
    """The stamp in the parameters, which may say that the request is left out; None: it is not measured either."""
    return parse((params.extra_args or {}).get(EXTRA_ARG))
