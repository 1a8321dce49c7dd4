"""A scheduler that has loaded its model is followed and observed, where it can be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from corevital.engines.sglang.facts import SOURCE, Running
from corevital.engines.sglang.watch import Hub, Watch
from corevital.log import warn_once

if TYPE_CHECKING:
    from corevital.engines.sglang.sampling import Sampling
    from corevital.steps.recorder import Recorder

watches: list[Watch] = []
"""The watch of this process's scheduler, once it is followed."""


def reports(worker: Running) -> Callable[[int], bool]:
    """Whether this rank reports: all ranks of a scheduler sample the same, and one of them answers clients."""
    answers = getattr(worker.scheduler, "recv_from_tokenizer", None) is not None
    return lambda slot: answers


def can_observe(running: Running) -> bool:
    """Whether SGLang shows its logits here. False after one warning."""
    if (getattr(running.args, "pp_size", None) or 1) > 1:
        _refuse("with pipeline parallelism the logits are in another process")
    elif getattr(running.args, "enable_pdmux", False):
        _refuse("with --enable-pdmux two streams sample at once, and one would wait for the other")
    elif not running.runner.supports_sampling_observer():
        _refuse("SGLang shows no logits under speculative decoding and diffusion")
    else:
        return True
    return False


def _refuse(why: str) -> None:
    warn_once("observer", "nothing is measured: %s; requests are served unobserved", why)


def follow(running: Running, observer: Hub, *, content: bool, hash_key: str | None) -> bool:
    """See :meth:`corevital.engines.protocol.Engine.follow`; logits are observed here too."""
    import torch

    from corevital.engines.sglang.sampling import Sampling
    from corevital.frames.sender import FrameSender
    from corevital.steps.device import can_serve, make_current, recorder_for
    from corevital.steps.frame_thread import FrameThread

    scheduler = running.scheduler
    device = torch.device(running.runner.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    vocab = int(scheduler.model_config.vocab_size)
    if not can_serve(vocab, device):
        return False
    watch = Watch(running, observer, content, hash_key)
    frames = FrameThread(FrameSender(SOURCE), partial(make_current, device))
    sampling = Sampling(watch, frames)
    rows = int(getattr(scheduler, "max_running_requests", None) or 1024)
    unclaimed = max(1.0 - float(getattr(running.args, "mem_fraction_static", None) or 0.9), 0.01)
    recorder = recorder_for(vocab, rows, unclaimed, device, sampling.keep, lambda _owners, lost: sampling.lose(lost))
    if recorder is None:
        frames.close()
        return False
    running.runner.sampling_observer = observe(sampling, recorder)
    watches[:] = [watch]
    return True


def observe(worker: Sampling, recorder: Recorder) -> Sampling:
    """See :meth:`corevital.engines.protocol.Engine.observe`; the observer is its own adapter."""
    worker.record(recorder)
    return worker
