"""The class that vLLM loads: ``corevital.engines.vllm:LogitsProcessor``, which is what the name ``corevital`` means.

vLLM has two processor interfaces, one a model runner, and accepts only subclasses of the right one. This class is
both, so one name serves whichever runner the engine chose; it hands every call on to that runner's adapter.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from corevital.engines.vllm import engine
from corevital.engines.vllm.facts import most_rows, source, unclaimed_share
from corevital.engines.vllm.names import processor_bases
from corevital.guard import guarded

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class LogitsProcessor(*processor_bases()):  # type: ignore[misc]  # the bases depend on the installed vLLM
    """Observes logits and never changes them."""

    __module__ = "corevital.engines.vllm"  # its public path

    def __init__(self, vllm_config: VllmConfig, *runner: Any) -> None:
        self._adapter: Any = None
        self._make_adapter(vllm_config, *runner)

    @guarded("the logits processor's start")
    def _make_adapter(self, vllm_config: VllmConfig, *runner: Any) -> None:
        from corevital.frames.sender import FrameSender
        from corevital.log import configure
        from corevital.steps.device import can_serve, make_current, recorder_for
        from corevital.steps.frame_thread import FrameThread

        configure()
        worker = engine.Worker.of(vllm_config, *runner)
        vocab, device = vllm_config.model_config.get_vocab_size(), worker.device
        if not can_serve(vocab, device):
            return
        frame_thread = FrameThread(FrameSender(source(worker.runner)), partial(make_current, device))
        rows, unclaimed = most_rows(vllm_config), unclaimed_share(vllm_config)
        recorder = recorder_for(
            vocab, rows, unclaimed, device, frame_thread.post, frame_thread.lose, frame_thread.hurry
        )
        if recorder is None:
            frame_thread.close()
            return
        self._adapter = engine.observe(worker, recorder)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request with a wrong ``corevital_*`` argument (HTTP 400).

        Raises:
            ValueError: names the argument and what it may be.
        """
        engine.request_args(sampling_params)

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
            self._adapter.apply(logits, *context)
        return logits

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Model Runner V2: a request enters a slot; True asks to be shown its logits."""
        return self._adapter is not None and self._adapter.add_request(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Model Runner V2: before each forward pass."""
        if self._adapter is not None:
            self._adapter.apply_staged_writes()
