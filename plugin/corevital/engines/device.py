"""The device that an engine serves on: whether we can measure there, and what a thread beside the engine's needs."""

from __future__ import annotations

import logging
from typing import Any

import torch

from corevital.engines import vllm_names
from corevital.engines.emitter import MOST_KEPT_BYTES, Emitter, Post
from corevital.kernels import warm_up
from corevital.log import LOGGER_NAME, warn_once


def can_serve(vocab: int, device: torch.device) -> bool:
    """Load and compile what a step needs. False, after one warning, where measuring would slow or break every step.

    Plain torch operations would take milliseconds of each step on a GPU, and on other accelerators wait for the device.

    Args:
        vocab: width of the logits to come.
        device: where they will be.
    """
    if device.type not in ("cpu", "cuda"):
        warn_once(
            "device",
            "nothing is measured: logits on %s cannot be read without waiting; use a CPU, or a GPU of NVIDIA or AMD",
            device.type,
        )
        return False
    try:
        warm_up(vocab, device=device, backend="auto" if device.type == "cpu" else "triton")
    except Exception as error:  # of a compiler, a cache or a driver, each in ways of its own
        warn_once(
            "device",
            "nothing is measured: the kernel cannot run on %s (%s: %.300s); it needs a working Triton, a C compiler, a "
            "writable TRITON_CACHE_DIR and free memory",
            device,
            type(error).__name__,
            error,
        )
        return False
    return True


def emitter_for(vllm_config: Any, device: torch.device, post: Post) -> Emitter:
    """An emitter for an engine's steps, with what they need taken now; on a GPU its memory is logged.

    Logits that are kept until their tokens are known are held in what the engine leaves free.
    """
    rows, unclaimed = vllm_names.most_rows(vllm_config), vllm_names.unclaimed_share(vllm_config)
    most_kept = MOST_KEPT_BYTES
    if device.type == "cuda":
        most_kept = min(most_kept, int(torch.cuda.mem_get_info(device)[1] * unclaimed / 4))
    emitter = Emitter(post, rows, most_kept)
    ring = emitter.warm_up(vllm_config.model_config.get_vocab_size(), device)
    if ring:
        logging.getLogger(LOGGER_NAME).info(
            "measuring holds %d MiB on %s and as much pinned memory, and up to %d MiB of logits between two steps",
            ring >> 20, device, most_kept >> 20,
        )  # fmt: skip
    return emitter


def make_current(device: torch.device) -> None:
    """Make a GPU the calling thread's own. Otherwise its first call takes memory on the first GPU of the machine."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
