"""What corevital supports, each list once: checked engine versions, capture modes, kernel backends.

Imports nothing, so both halves and every command may read it.
"""

from __future__ import annotations

import importlib.util
from typing import Final, Literal

Version = tuple[int, ...]
"""Major and minor; and the third number of an engine whose interfaces change with it."""

CHECKED: Final[dict[str, tuple[Version, Version]]] = {
    "vllm": ((0, 27), (0, 32)),
    "sglang": ((0, 5, 23), (0, 5, 23)),
    "tgi": ((2, 0), (2, 0)),  # of its Python package, which stays behind: TGI 3.3.7 has 2.0.5
    "transformers": ((5, 0), (5, 19)),
}
"""By engine, its value of ``corevital.engine``: the oldest and the newest version that the tests ran on."""

STAGES: Final = ("raw", "post_penalty", "pre_grammar")
"""Which logits an engine may show."""

SGLANG_OLDEST: Final = (0, 5, 19)
"""The first SGLang with a ``SamplingObserver``."""

CaptureMode = Literal["summary", "full", "on_risk"]
CAPTURE_MODES: Final[tuple[CaptureMode, ...]] = ("summary", "full", "on_risk")
"""Which requests keep their per-token series: none, all, or those whose risk or flags ask for it."""

STOP_ON: Final = ("nan", "loop", "alarm")
"""What may end a sequence early."""
STOP_ON_VARIABLE: Final = "COREVITAL_STOP_ON"
"""Its setting, in the environment of an engine's processes even if it was set in a file."""
STOPPING: Final = ("vllm",)
"""Engines that can be made to end a sequence."""
NO_STOP: Final = "none"
"""In place of these names: nothing does."""
STOPPED: Final = "corevital:"
"""Prefix of the stop reason of a sequence that one of them ended."""

KERNELS: Final = ("triton", "numba", "torch")
"""Kernel backends by name, which is that of the library they need."""

_CHOICE: Final = {"cuda": ("triton", "torch"), "cpu": ("numba", "torch")}

MEASURED_BY: Final[dict[str, Literal["auto", "triton"]]] = {"cpu": "auto", "cuda": "triton"}
"""By device type: the backend that is fast enough for every step of an engine. Other devices are not measured."""


def stops_named(text: str) -> tuple[str, ...]:
    """The names of :data:`STOP_ON` in a comma-separated text, in its order; empty for :data:`NO_STOP`.

    Raises:
        ValueError: it names none, or something else.
    """
    named = {name.strip() for name in text.split(",") if name.strip()}
    if named == {NO_STOP}:
        return ()
    if not named or not named.issubset(STOP_ON):
        raise ValueError("no such reason to stop")
    return tuple(name for name in STOP_ON if name in named)


def stopped_by(stop_reason: object) -> str | None:
    """The name of :data:`STOP_ON` that an engine's stop reason stands for; None for any other reason."""
    name = stop_reason.removeprefix(STOPPED) if isinstance(stop_reason, str) else ""
    return name if name in STOP_ON and stop_reason != name else None


def choice(device_type: str) -> tuple[str, ...]:
    """Backends that ``auto`` tries on a device, best first. The last one always works."""
    return _CHOICE.get(device_type, ("torch",))


def likely_kernel(device_type: str) -> str:
    """The backend that a worker on this device will choose, by what is installed: nothing is imported."""
    best = choice(device_type)[0]
    return best if importlib.util.find_spec(best) is not None else "torch"
