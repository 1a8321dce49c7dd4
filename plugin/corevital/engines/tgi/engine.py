"""TGI as the eight things of :mod:`corevital.engines.protocol`. Imports TGI and torch only where they are needed.

Frontend and worker are one process, the shard, and one thread of it, that of its event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from corevital.engines.protocol import Facts, reported
from corevital.engines.request_args import RequestArgs
from corevital.engines.tgi import names
from corevital.engines.tgi.register import register
from corevital.frames.layout import Source
from corevital.frames.lifecycle import Observer
from corevital.frames.stamp import Stamp

if TYPE_CHECKING:
    from corevital.engines.tgi.steps import Steps
    from corevital.engines.tgi.watch import Sequence
    from corevital.steps.recorder import Recorder

__all__ = ["STAGES", "carried", "carry", "facts", "follow", "observe", "register", "reports", "request_args"]

ENGINE: Final = "tgi"

STAGES: Final[Mapping[str, str]] = {"flash": "post_penalty", "padded": "post_penalty"}
"""Both show logits after watermark, penalties and grammar, and before temperature, top-k, top-p and typical-p."""


class Running(NamedTuple):
    """A shard that is about to serve.

    Attributes:
        service: its ``TextGenerationService``.
    """

    service: Any


def source(model: Any) -> Source:
    """Where a model's logits are seen."""
    runner = "padded" if model.requires_padding else "flash"
    return Source(ENGINE, runner, STAGES[runner])


def facts(running: Running) -> Facts:
    """See :meth:`corevital.engines.protocol.Engine.facts`."""
    model = running.service.model
    found: dict[str, Any] = {
        "engine.name": ENGINE,
        "engine.version": names.version(),
        "engine.runner": source(model).runner,
        "engine.dtype": str(model.dtype).removeprefix("torch."),
        "engine.quantization": getattr(model, "quantize", None),
        "engine.tensor_parallel_size": model.world_size,
        "device.type": model.device.type,
    }
    if model.device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(model.device)
        found |= {"device.name": properties.name, "device.memory_bytes": properties.total_memory}
    return Facts(
        model=str(model.model_id),
        source=source(model),
        resource=reported(found),
        tokenizer=(str(getattr(model.tokenizer, "name_or_path", "") or ""), None),
    )


def follow(running: Running, observer: Observer, *, content: bool, hash_key: str | None) -> bool:
    """See :meth:`corevital.engines.protocol.Engine.follow`. A shard's prompts have no hash."""
    from corevital.engines.tgi import hooks
    from corevital.engines.tgi.steps import Steps
    from corevital.engines.tgi.watch import Watch

    service = running.service
    watch = Watch(observer, service.model, content)
    hooks.follow_service(service, watch)
    hooks.follow_steps(service.model, Steps(watch, service.model))
    return True


def carry(params: Sequence, stamp: Stamp | None) -> None:
    """See :meth:`corevital.engines.protocol.Engine.carry`; the same process: no text."""
    params.stamp = stamp


def carried(params: Sequence) -> Stamp | None:
    """See :meth:`corevital.engines.protocol.Engine.carried`."""
    return params.stamp


def observe(worker: Steps, recorder: Recorder) -> Steps:
    """See :meth:`corevital.engines.protocol.Engine.observe`; the shard's steps are their own adapter."""
    worker.record(recorder)
    return worker


def reports(worker: Any) -> Callable[[int], bool]:
    """Every rank of a model samples all tokens, from the same logits; the first one reports."""
    is_first = worker.rank == 0
    return lambda slot: is_first


def request_args(params: Any) -> RequestArgs:
    """None: no field of a TGI request reaches the shard unread."""
    return RequestArgs()
