"""The class that vLLM loads: ``corevital.engines.vllm:LogitsProcessor``, which is what the name ``corevital`` means.

vLLM has two processor interfaces, one a model runner, and accepts only subclasses of the right one. This class is
both, so one name serves whichever runner the engine chose; it hands every call on to that runner's adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corevital.engines import xargs
from corevital.engines.vllm_names import processor_bases, reports_logits
from corevital.guard import guarded

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class LogitsProcessor(*processor_bases()):  # type: ignore[misc]  # the bases depend on the vLLM that is installed
    """Observes logits and never changes them."""

    def __init__(self, vllm_config: VllmConfig, *runner: Any) -> None:
        self._adapter: Any = None
        self._make_adapter(vllm_config, *runner)

    @guarded("the logits processor's start")
    def _make_adapter(self, vllm_config: VllmConfig, *runner: Any) -> None:
        # V1 passes (device, is_pin_memory), Model Runner V2 its request states.
        if len(runner) != 2:
            return
        from corevital.engines.vllm_v1 import V1Adapter
        from corevital.frames.transport import FrameSender
        from corevital.kernels import warm_up
        from corevital.log import configure

        configure()
        device, _pinned = runner
        warm_up(vllm_config.model_config.get_vocab_size(), device=device)
        self._adapter = V1Adapter(FrameSender("v1"), emits=reports_logits(vllm_config))

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

    def apply(self, logits: torch.Tensor, *_context: Any) -> torch.Tensor:
        """Look at ``logits`` ``[rows, vocab]`` and return the same tensor."""
        if self._adapter is not None:
            self._adapter.observe(logits)
        return logits

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Model Runner V2: a request enters a slot; True asks to be shown its logits."""
        return False
