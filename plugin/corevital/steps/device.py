"""The device that an engine serves on: whether it can be measured, and what measuring needs there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from corevital.kernels import warm_up
from corevital.log import LOGGER_NAME, warn_once
from corevital.steps.recorder import MOST_KEPT_BYTES, Lose, Post, Recorder
from corevital.supported import MEASURED_BY

T = TypeVar("T")


def can_serve(vocab: int, device: torch.device) -> bool:
    """Load and compile what a step needs. False, after one warning, where measuring would slow or break every step.

    Plain torch operations take milliseconds of each step on a GPU; on other accelerators they wait for the device.

    Args:
        vocab: width of the logits to come.
        device: where they will be.
    """
    if device.type not in MEASURED_BY:
        warn_once(
            "device",
            "nothing is measured: logits on %s cannot be read without waiting; use a CPU, or a GPU of NVIDIA or AMD",
            device.type,
        )
        return False
    try:
        _apart(device, lambda: warm_up(vocab, device=device, backend=MEASURED_BY[device.type]))
    except Exception as error:  # a compiler's, a cache's or a driver's, each with its own types
        _cannot_run(device, error)
        return False
    return True


def _cannot_run(device: torch.device, error: Exception) -> None:
    reason = " ".join(str(error).split())  # a compiler's own message has many lines
    warn_once(
        "device",
        "nothing is measured: the kernel cannot run on %s (%s: %.300s); it needs a working Triton, a C compiler, a "
        "writable TRITON_CACHE_DIR and free memory",
        device,
        type(error).__name__,
        reason,
    )


def recorder_for(
    vocab: int,
    rows: int,
    unclaimed: float,
    device: torch.device,
    post: Post,
    lose: Lose = lambda owners, rows: None,
    hurry: Callable[[], None] = lambda: None,
) -> Recorder | None:
    """A recorder for an engine's steps, with all that they need; None, after one warning, where that fails.

    Its memory on a GPU is logged. An engine that measures its own memory later counts ours as its own.

    Args:
        vocab: width of the logits to come.
        rows: of a step at most.
        unclaimed: share of the device's memory that the engine leaves free. Logits that are kept until their tokens are
            known are held in it.
        device: where the logits will be.
        post: where tables leave.
        lose: counts rows that are not measured.
        hurry: has what was posted sent at once.
    """
    most_kept = MOST_KEPT_BYTES
    if device.type == "cuda":
        most_kept = min(most_kept, int(torch.cuda.mem_get_info(device)[1] * unclaimed / 4))
    recorder = Recorder(post, rows, most_kept, lose, hurry)
    try:
        held, pinned = _apart(device, lambda: recorder.warm_up(vocab, device))
    except Exception as error:
        _cannot_run(device, error)
        return None
    if held:
        logging.getLogger(LOGGER_NAME).info(
            "measuring holds %d MiB on %s and %d MiB of pinned memory, and up to %d MiB of logits between two steps",
            _mib(held), device, _mib(pinned), _mib(most_kept),
        )  # fmt: skip
    return recorder


def _apart(device: torch.device, call: Callable[[], T]) -> T:
    """Call it; on a GPU in a separate thread, so that it takes separate memory.

    An engine that can sleep unmaps then what the thread that loads the model has allocated meanwhile.
    """
    if device.type != "cuda":
        return call()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(make_current, device).result()
        return pool.submit(call).result()


def _mib(size: int) -> int:
    return -(-size >> 20)


def make_current(device: torch.device) -> None:
    """Make a GPU the calling thread's default: otherwise the first call takes memory on the machine's first GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
