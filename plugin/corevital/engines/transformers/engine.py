"""transformers as the eight things of :mod:`corevital.engines.protocol`. Imports neither torch nor transformers.

Frontend and worker are one thread, the one that calls ``generate()``; nothing is loaded before it makes a monitor.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from corevital.engines.protocol import Facts, Host
from corevital.engines.request_args import RequestArgs, read
from corevital.frames.layout import Source
from corevital.frames.lifecycle import Observer
from corevital.frames.stamp import Stamp

if TYPE_CHECKING:
    from corevital.engines.transformers.rows import Rows
    from corevital.steps.recorder import Recorder

__all__ = ["STAGES", "carried", "carry", "facts", "follow", "observe", "register", "reports", "request_args"]

ENGINE: Final = "transformers"
RUNNER: Final = "generate"
STAGES: Final[Mapping[str, str]] = {RUNNER: "raw"}
"""Where no processor comes before ours; else the stage is :data:`CHANGED`."""

CHANGED: Final = "post_penalty"
"""Stage of logits that processors before ours may have changed."""


class Running(NamedTuple):
    """A model that is about to generate.

    Attributes:
        model: the name it is reported under.
        device: the type of the device that its logits are on.
        follow: called with the observer.
    """

    model: str
    device: str
    follow: Callable[[Observer], object]


def register(host: Host[Running]) -> None:
    """Nothing to do: a program that wants to measure makes a monitor."""


def facts(running: Running) -> Facts:
    """See :meth:`corevital.engines.protocol.Engine.facts`."""
    resource = {
        "engine.name": ENGINE,
        "engine.version": version(),
        "engine.runner": RUNNER,
        "device.type": running.device,
    }
    return Facts(model=running.model, source=Source(ENGINE, RUNNER, STAGES[RUNNER]), resource=resource)


@functools.cache  # looking it up reads files
def version() -> str:
    """The installed version of transformers."""
    return importlib.metadata.version("transformers")


def follow(running: Running, observer: Observer, *, content: bool, hash_key: str | None) -> bool:
    """See :meth:`corevital.engines.protocol.Engine.follow`. A model has no text, so there is no content."""
    running.follow(observer)
    return True


def carry(params: dict[str, Any], stamp: Stamp | None) -> None:
    """See :meth:`corevital.engines.protocol.Engine.carry`; the same process: no text."""
    params["stamp"] = stamp


def carried(params: dict[str, Any]) -> Stamp | None:
    """See :meth:`corevital.engines.protocol.Engine.carried`."""
    return params.get("stamp")


def observe(worker: Rows, recorder: Recorder) -> Rows:
    """See :meth:`corevital.engines.protocol.Engine.observe`; a call of ``generate()`` is its own adapter."""
    worker.record(recorder)
    return worker


def reports(worker: Any) -> Callable[[int], bool]:
    """Of ranks that share a model by tensor parallelism, which see the same logits, the first one reports."""
    import torch.distributed as ranks

    shared = getattr(worker, "tp_size", None) or 1
    is_first = shared == 1 or not ranks.is_initialized() or ranks.get_rank() % shared == 0
    return lambda slot: is_first


def request_args(params: dict[str, Any]) -> RequestArgs:
    """The monitor's own arguments, which hold for each sequence."""
    return read(params, "Monitor")
