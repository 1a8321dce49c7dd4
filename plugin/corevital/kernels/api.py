"""The operation that all backends implement, and the choice of one.

A backend's module has ``supports(device)``, ``token_stats(logits, top_k)`` and ``warm_up(vocab_size, device)``, and is
imported when it is first needed.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

from corevital.kernels.stats import HEAD_WORDS, BackendUnavailableError, TokenStats
from corevital.log import warn_once
from corevital.supported import KERNELS, choice

if TYPE_CHECKING:
    from torch import Tensor, device

Backend = Literal["auto", "triton", "numba", "torch"]
"""Names that ``backend`` may have."""

_PACKAGE: Final = __name__.rpartition(".")[0]
_MODULES: Final = {"triton": "triton_gpu", "numba": "numba_cpu", "torch": "plain_torch"}  # none shadows its library
_failed: Final[set[str]] = set()  # what `auto` passes over, because it failed to warm up


class _BackendModule(Protocol):
    """What a backend's module offers."""

    def supports(self, device: device) -> bool:
        """Whether logits on this device can be read."""

    def token_stats(self, logits: Tensor, top_k: int, out: Tensor | None = None) -> TokenStats:
        """The statistics; logits are checked, detached, float32 or bfloat16, of any strides; ``out`` is checked."""

    def warm_up(self, vocab_size: int, device: device) -> None:
        """Compile and load all that a call of ``token_stats`` needs."""


def token_stats(logits: Tensor, *, top_k: int = 20, backend: Backend = "auto", out: Tensor | None = None) -> TokenStats:
    """Compute entropy, margin, top k and the like for each row of logits.

    On CUDA nothing waits for the device: the results are queued like those of any torch operation.

    Args:
        logits: ``[rows, vocab]``, float32 or bfloat16 (float16 is widened first), any device, any strides. Not written.
        top_k: how many of the likeliest tokens to return, at least 1. May exceed ``vocab``.
        backend: ``auto`` takes triton on CUDA where it is available, numba on CPU where it is installed, and torch
            anywhere else.
        out: where the results go, ``[rows, 11 + 2 * top_k]`` int32 on the logits' device, each row contiguous; see
            ``words`` of :class:`TokenStats`. None: a new table.

    Returns:
        One entry a row; see :class:`TokenStats` for the conventions on NaN, infinities and ties.

    Raises:
        BackendUnavailableError: the backend asked for by name is not installed, or cannot read this device.
        TypeError: ``logits`` is not a tensor of those dtypes, or ``top_k`` is not an int.
        ValueError: ``logits`` is not two-dimensional or has an empty vocabulary, ``top_k`` is below 1, ``out`` has
            another shape, dtype or device, or there is no backend of that name.
    """
    logits = _checked(logits, top_k)
    if out is not None:
        _check_out(out, logits, top_k)
    return _choose(backend, logits.device)[1].token_stats(logits, top_k, out)


def token_stats_unchecked(logits: Tensor, top_k: int, out: Tensor) -> None:
    """As :func:`token_stats` into ``out``, for an engine's thread: with cold caches the checks are a sixth of the cost.

    Only the dtype is checked, which may be that of another logits processor.
    """
    import torch

    if logits.dtype is not torch.float32 and logits.dtype is not torch.bfloat16:
        logits = _checked(logits, top_k)
    _choose("auto", logits.device)[1].token_stats(logits, top_k, out)


class ByAddress(Protocol):
    """A backend that can do without tensors: :mod:`corevital.kernels.numba_cpu`, where the arguments are described."""

    def write_stats(
        self, rows: int, vocab: int, is_half: bool, logits: int, pitch: int, top_k: int, words: int, width: int
    ) -> None:
        """The statistics of rows."""

    def write_sampled(
        self,
        tokens: list[int],
        vocab: int,
        is_half: bool,
        logits: int,
        pitch: int,
        at: int,
        likeliest: int,
        width: int,
        out: int,
    ) -> None:
        """Tokens and two logits of each row."""


def by_address(device: device) -> ByAddress | None:
    """What :func:`token_stats` uses on this device, if it can do without tensors.

    An engine's thread avoids them: with cold caches each call of torch takes ten times as long.
    """
    name, module = _choose("auto", device)
    return cast(ByAddress, module) if name == "numba" else None


def is_compiled(device: device) -> bool:
    """Whether :func:`token_stats` uses compiled kernels on this device, which also find its rows' tokens."""
    return _choose("auto", device)[0] == "triton"


def warm_up(vocab_size: int, *, device: str | device = "cpu", backend: Backend = "auto") -> str:
    """Make later calls of :func:`token_stats` free of compilation. Takes seconds where nothing is cached yet.

    Call it in the process that will serve, after any fork.

    Args:
        vocab_size: the width of the logits to come.
        device: where they will be.
        backend: as for :func:`token_stats`.

    Returns:
        The name of the backend that will serve.

    Raises:
        BackendUnavailableError: as for :func:`token_stats`.
        ValueError: ``vocab_size`` is below 1, or there is no backend of that name.
    """
    import torch

    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    target = torch.device(device)
    while True:
        name, module = _choose(backend, target)
        try:
            module.warm_up(vocab_size, target)
            return name
        except Exception as error:  # a compiler that can be imported may still fail on this device or driver
            if backend != "auto" or name == KERNELS[-1]:
                raise
            _failed.add(name)
            _choose.cache_clear()
            warn_once(
                f"kernel:{name}", "kernel backend %r fails here (%s: %s): using another, slower one",
                name, type(error).__name__, error,
            )  # fmt: skip


def available_backends(device: str | device = "cpu") -> tuple[str, ...]:
    """Names of the backends that can read logits on this device."""
    import torch

    target = torch.device(device)
    loaded = ((name, _load(name)) for name in KERNELS)
    return tuple(name for name, module in loaded if not isinstance(module, str) and module.supports(target))


def _checked(logits: Tensor, top_k: int) -> Tensor:
    """The logits detached and in a dtype that every backend reads, or an error of one clear line."""
    import torch

    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"logits must be a torch.Tensor of shape [rows, vocab], got {type(logits).__name__}")
    dtype = logits.dtype
    if dtype is not torch.float32 and dtype is not torch.bfloat16 and dtype is not torch.float16:
        # float64 too: a narrowing copy can turn finite logits into infinities, so the caller decides on it.
        raise TypeError(f"logits must be float32, bfloat16 or float16, got {dtype}; convert with logits.float()")
    if logits.ndim != 2:
        raise ValueError(f"logits must have two dimensions, [rows, vocab], got shape {list(logits.shape)}")
    if logits.shape[1] == 0:
        raise ValueError(f"logits must have at least one vocabulary entry, got shape {list(logits.shape)}")
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k must be an int, got {type(top_k).__name__}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if logits.requires_grad:
        logits = logits.detach()
    return logits.float() if dtype is torch.float16 else logits


def _check_out(out: Tensor, logits: Tensor, top_k: int) -> None:
    import torch

    shape, device = (logits.shape[0], HEAD_WORDS + 2 * top_k), logits.device  # len() of a tensor is slow
    if out.dtype is not torch.int32 or out.shape != shape or out.stride(1) != 1 or out.device != device:
        raise ValueError(
            f"out must be int32 {list(shape)} on {device}, each row contiguous, "
            f"got {out.dtype} {list(out.shape)} on {out.device}"
        )


@functools.cache  # beside a single row, a microsecond counts
def _choose(backend: str, device: device) -> tuple[str, _BackendModule]:
    """The backend to use for logits on this device."""
    if backend == "auto":
        for name in choice(device.type):
            if name in _failed:
                continue
            module = _load(name)
            if not isinstance(module, str) and module.supports(device):
                return name, module
        raise BackendUnavailableError(f"no kernel backend can read logits on {device}; reinstall torch")
    if backend not in KERNELS:
        raise ValueError(f"backend must be one of auto, {', '.join(KERNELS)}, got {backend!r}")
    module = _load(backend)
    if isinstance(module, str):
        raise BackendUnavailableError(module)
    if not module.supports(device):
        raise BackendUnavailableError(f"kernel backend {backend!r} cannot read logits on {device}; use backend='auto'")
    return backend, module


@functools.cache  # a failing import is slow, and would be tried again at every call
def _load(name: str) -> _BackendModule | str:
    """The backend's module, or why there is none."""
    try:
        return cast(_BackendModule, importlib.import_module(f"{_PACKAGE}.{_MODULES[name]}"))
    except Exception as error:  # a compiler that does not match its numpy or driver raises its own types
        return (
            f"kernel backend {name!r} is not available: {type(error).__name__}: {error}; "
            f"install a working {name} or use backend='auto'"
        )
