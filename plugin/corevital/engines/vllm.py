"""The class that vLLM loads: ``corevital.engines.vllm:LogitsProcessor``, which is what the name ``corevital`` means.

vLLM has two processor interfaces, one a model runner, and accepts only subclasses of the right one. This class is
both, so one name serves whichever runner the engine chose; it hands every call on to that runner's adapter.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from corevital.engines import vllm_names, xargs
from corevital.guard import guarded

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class LogitsProcessor(*vllm_names.processor_bases()):  # type: ignore[misc]  # the bases depend on the vLLM that is installed
    """Observes logits and never changes them."""

    def __init__(self, vllm_config: VllmConfig, *runner: Any) -> None:
        self._adapter: Any = None
        self._make_adapter(vllm_config, *runner)

    @guarded("the logits processor's start")
    def _make_adapter(self, vllm_config: VllmConfig, *runner: Any) -> None:
        from corevital.engines.courier import Courier
        from corevital.engines.device import can_serve, emitter_for, make_current
        from corevital.frames.transport import FrameSender
        from corevital.log import configure

        configure()
        is_v2 = len(runner) == 1  # Model Runner V2 passes its request states; V1 the device, and if memory is pinned
        device = runner[0].device if is_v2 else runner[0]
        if not can_serve(vllm_config.model_config.get_vocab_size(), device):
            return
        post = Courier(FrameSender("mrv2" if is_v2 else "v1"), partial(make_current, device)).post
        emitter = emitter_for(vllm_config, device, post)
        if is_v2:
            from corevital.engines.vllm_v2 import V2Adapter

            self._adapter = V2Adapter(emitter, runner[0], vllm_names.reported_slots(vllm_config))
        else:
            from corevital.engines.vllm_v1 import V1Adapter

            self._adapter = V1Adapter(emitter, vllm_names.reports_logits())

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request with a wrong ``corevital_*`` argument (HTTP 400).

        Raises:
            ValueError: names the argument and what it may be.
        """
        xargs.read(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """False: V1 shows the logits of greedy requests only to processors that might change the argmax."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: the batch changed, or None."""
        if self._adapter is not None:
            self._adapter.update_state(batch_update)

    def apply(self, logits: torch.Tensor, *context: Any) -> torch.Tensor:
        """Look at ``logits`` ``[rows, vocab]`` and return the same tensor."""
        if self._adapter is not None:
            self._adapter.observe(logits, *context)
        return logits

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Model Runner V2: a request enters a slot; True asks to be shown its logits."""
        return self._adapter is not None and self._adapter.add_request(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Model Runner V2: before each forward pass."""
        if self._adapter is not None:
            self._adapter.settle()
