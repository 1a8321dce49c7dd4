"""vLLM as the eight things of :mod:`corevital.engines.protocol`. Imports vLLM and torch only where they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from corevital.engines.request_args import RequestArgs
from corevital.engines.vllm import request_args as vllm_args
from corevital.engines.vllm.facts import STAGES, Running, facts
from corevital.engines.vllm.register import register
from corevital.engines.vllm.stamps import carried, carry
from corevital.frames.lifecycle import Observer

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams

    from corevital.engines.vllm.runner_v1 import V1Adapter
    from corevital.engines.vllm.runner_v2 import V2Adapter
    from corevital.steps.recorder import Recorder

__all__ = ["STAGES", "carried", "carry", "facts", "follow", "observe", "register", "reports", "request_args"]


class Worker(NamedTuple):
    """A worker of vLLM, which makes a logits processor with its configuration and what else its model runner passes.

    Attributes:
        config: its ``VllmConfig``.
        device: where its logits are.
        states: Model Runner V2's buffers by slot; None under V1.
    """

    config: Any
    device: torch.device
    states: Any = None

    @classmethod
    def of(cls, config: Any, *passed: Any) -> Worker:
        """Model Runner V2 passes its states; V1 the device, and whether memory is pinned."""
        return cls(config, passed[0].device, passed[0]) if len(passed) == 1 else cls(config, passed[0])

    @property
    def runner(self) -> str:
        """The model runner."""
        return "v1" if self.states is None else "mrv2"


def follow(running: Running, observer: Observer, *, content: bool, hash_key: str | None) -> bool:
    """See :meth:`corevital.engines.protocol.Engine.follow`."""
    from corevital.engines.vllm.frontend import attach
    from corevital.engines.vllm.own_tracing import leave_tokens_to_us, traces_endpoint

    if traces_endpoint(running.config) is not None:
        leave_tokens_to_us()
    return attach(running.engine, running.config, observer, content=content, hash_key=hash_key)


def observe(worker: Worker, recorder: Recorder) -> V1Adapter | V2Adapter:
    """The adapter of the worker's model runner; see :meth:`corevital.engines.protocol.Engine.observe`."""
    if worker.states is not None:
        from corevital.engines.vllm.runner_v2 import V2Adapter

        adapter = V2Adapter(recorder, worker.states, reports(worker))
        adapter.follow_removals()
        return adapter
    from corevital.engines.vllm.runner_v1 import V1Adapter

    return V1Adapter(recorder, emits=reports(worker)(0))  # of all slots, or none


def reports(worker: Worker) -> Callable[[int], bool]:
    """See :meth:`corevital.engines.protocol.Engine.reports`."""
    from corevital.engines.vllm.ranks import reported_slots, reports_logits

    if worker.states is not None:
        return reported_slots(worker.config)
    is_speaker = reports_logits()
    return lambda slot: is_speaker


def request_args(params: SamplingParams) -> RequestArgs:
    """See :meth:`corevital.engines.protocol.Engine.request_args`."""
    return vllm_args.read(params.extra_args)
