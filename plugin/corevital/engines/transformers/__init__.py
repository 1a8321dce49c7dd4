"""transformers: a library interface, for notebooks, tests and batch jobs. See docs/operate/engines/transformers.md.

Nothing is imported before :class:`Monitor` is asked for: the table of engines may be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corevital.engines.transformers.monitor import Monitor

__all__ = ["Monitor"]


def __getattr__(name: str) -> Any:
    if name != "Monitor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from corevital.engines.transformers.monitor import Monitor

    return Monitor
