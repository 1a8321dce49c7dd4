"""Statistics of logits on a GPU: two Triton kernels, one read of the logits, and nothing that waits for the device.

A step allocates its results and nothing else, where the caller gives no ``out``: a new table, so that they stay
valid for as long as the caller keeps them, however many steps later the device gets to them. PyTorch's allocator hands
out such a table without asking the device. What the kernels leave for each other is kept from step to step.

No variant of a kernel depends on the number of rows or on where in memory they are, so an engine that forbids
compilation while it serves can serve with any batch. A variant depends on the dtype, on the vocabulary's size and on
``top_k``, each rounded up to a power of two; rows that do not start at a multiple of 16 bytes may need one chunk more,
and then the next power of two.

On a CPU there is only Triton's interpreter, for tests: set ``TRITON_INTERPRET=1`` before anything imports triton.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
import triton

from corevital.kernels import plain_torch as plain
from corevital.kernels.stats import HEAD_WORDS, MASS_TOKENS, TokenStats
from corevital.kernels.triton_gpu.stages import CHUNK, GROUP, LINE_BITS, PARTIALS, chunk_kernel, row_kernel

__all__ = ["supports", "token_stats", "warm_up"]

_INTERPRETED: Final = not isinstance(chunk_kernel, triton.JITFunction)

_CHUNK: Final[int] = CHUNK.value
_GROUP: Final[int] = GROUP.value
_LINE: Final[int] = LINE_BITS.value // 8
_PARTIALS: Final[int] = PARTIALS.value

_PLACES: Final = 32
"""Places for the top k in the smallest variant: it serves all that engines ask for."""

_THREAD_KEYS: Final = 16
"""int64 that a thread keeps while it looks for the highest: 32 registers."""

_MOST_KEYS: Final = 1024 * _THREAD_KEYS
"""What the threads of one program hold: the groups of 1048576 logits, or those searched for the top 256."""

_THREADS: Final = 128
"""Of a program that reads a chunk; of one that joins a row, at least."""

_MOST_CHUNKS: Final = 1 << 16
"""Chunks that are read at once: 1 GiB of float32 logits, whose workspace is 18 MiB. Rows beyond follow behind."""

OPTIONS: Final = {"enable_fp_fusion": True}  # said, because Triton 3.9 warns that its default will change

# The kernels of a step share a workspace with those of the next, which the stream runs later. Streams have their own,
# and one thread at a time queues both of its kernels.
_workspaces: Final[dict[torch.device, tuple[torch.Tensor, torch.Tensor]]] = {}
_last_streams: Final[dict[torch.device, torch.cuda.Stream]] = {}  # on which each workspace was used last
_turn: Final = threading.Lock()
_every_row: Final[dict[torch.device, torch.Tensor]] = {}


def supports(device: torch.device) -> bool:
    """Whether logits on this device can be read: on a GPU of NVIDIA or AMD, or on the CPU in Triton's interpreter."""
    return device.type == ("cpu" if _INTERPRETED else "cuda")


def warm_up(vocab_size: int, device: torch.device) -> None:
    """Compile what logits of this vocabulary will need, for any ``top_k`` up to 32; seconds for each kernel.

    A larger ``top_k`` is compiled when it is first asked for.
    """
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.zeros(1, vocab_size + 1, dtype=dtype, device=device)
        token_stats(logits[:, :-1], MASS_TOKENS)
        token_stats(logits[:, 1:], MASS_TOKENS)


def token_stats(logits: torch.Tensor, top_k: int, out: torch.Tensor | None = None) -> TokenStats:
    """Statistics of each row; see :func:`corevital.kernels.token_stats`.

    Logits whose rows are not contiguous each are copied first. A ``top_k`` above 256 or a vocabulary above 1048576 is
    left to :mod:`corevital.kernels.plain_torch`.

    Args:
        logits: ``[rows, vocab]``, float32 or bfloat16, without gradient.
        top_k: at least 1.
        out: where the words go, or None.
    """
    logits = readable(logits)
    rows = logits.shape[0]
    if not holds(logits.shape[1], top_k):
        return plain.token_stats(logits, top_k, out)
    words = out
    if words is None:
        words = torch.empty((rows, HEAD_WORDS + 2 * top_k), dtype=torch.int32, device=logits.device)
    if rows > 0:
        write_stats(logits, every_row(logits.device, rows), rows, top_k, words)
    return TokenStats(words)


def readable(logits: torch.Tensor) -> torch.Tensor:
    """The logits, copied where a row is not contiguous or the next one is 2^31 entries on, which is another variant."""
    if (logits.shape[1] > 1 and logits.stride(1) != 1) or logits.stride(0) >= 1 << 31:
        return logits.contiguous()
    return logits


def holds(vocab: int, top_k: int) -> bool:
    """Whether the threads of a program can hold what a row of so many logits leaves, wherever it starts."""
    return _keys(triton.cdiv(vocab + _LINE // 2 - 1, _CHUNK), top_k) <= _MOST_KEYS


def _keys(chunks: int, top_k: int) -> int:
    places = max(_PLACES, triton.next_power_of_2(top_k))
    return int(max(triton.next_power_of_2(chunks) * (_CHUNK // _GROUP), places * _GROUP))


def write_stats(
    logits: torch.Tensor,
    at: torch.Tensor,
    rows: int,
    top_k: int,
    words: torch.Tensor,
    place: tuple[torch.Tensor, torch.Tensor] | None = None,
    compiled: Sequence[int] = (),
) -> None:
    """Queue the two kernels; again for each GiB of logits.

    Args:
        logits: ``[R, vocab]``, :func:`readable`.
        at: ``[rows]`` int32, which of its rows.
        rows: at least 1.
        top_k: that :func:`holds`.
        words: ``[rows, …]`` int32, where the words of each row go.
        place: slots and positions ``[rows]``, int32 or int64, for the two words before those.
        compiled: the variants that may be used, rising: see :func:`variants`. Otherwise the smallest that holds a row.
    """
    vocab, size = logits.shape[1], logits.element_size()
    stride = logits.stride(0) if logits.shape[0] > 1 else 0
    lead = logits.data_ptr() % _LINE // size
    # the most entries there may be between a row's start and the last multiple of 16 bytes before it
    shift = 0 if lead == 0 and stride * size % _LINE == 0 else _LINE // size - 1
    chunks = triton.cdiv(vocab + shift, _CHUNK)
    if rows > (most := max(1, _MOST_CHUNKS // chunks)):
        for start in range(0, rows, most):
            part = slice(start, min(start + most, rows))
            there = None if place is None else (place[0][part], place[1][part])
            write_stats(logits, at[part], part.stop - start, top_k, words[part], there, compiled)
        return
    room = next((size for size in compiled if size >= chunks), 0) or triton.next_power_of_2(chunks)
    places = max(_PLACES, triton.next_power_of_2(top_k))
    row_threads = max(_THREADS, _keys(room, top_k) // _THREAD_KEYS)
    lanes = warp_size(logits.device)
    slots, positions = place or (words, words)
    with _turn, current(logits.device):
        partials, ranks = _workspace(logits.device, rows * chunks)
        inputs = (logits, lead, stride, at, vocab, chunks, partials, ranks)
        chunk_kernel[(rows * chunks,)](*inputs, FUSED=not _INTERPRETED, num_warps=_THREADS // lanes, **OPTIONS)
        row_kernel[(rows,)](
            *inputs, words, words.stride(0), top_k, slots, positions, CHUNKS=room,
            PLACES=places, PLACED=place is not None, num_warps=row_threads // lanes, **OPTIONS,
        )  # fmt: skip


def variants(vocab: int, wider: int) -> tuple[int, ...]:
    """``CHUNKS`` of those that a vocabulary needs, rising; the last one holds ``wider`` logits, wherever a row starts.

    Rows of any size up to that need no other one.
    """
    shift = _LINE // 2 - 1
    return tuple(
        sorted({triton.next_power_of_2(triton.cdiv(size, _CHUNK)) for size in (vocab, vocab + shift, wider + shift)})
    )


def widest(chunks: int) -> int:
    """Logits of a row that so many chunks hold, wherever it starts."""
    return chunks * _CHUNK - (_LINE // 2 - 1)


@functools.cache
def warp_size(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's CDNA, 32 on its RDNA and elsewhere."""
    return int(torch.cuda.get_device_properties(device).warp_size) if device.type == "cuda" else 32


def reserve(device: torch.device, rows: int, vocab: int) -> int:
    """Take what steps of up to so many rows share, on the current stream. Returns its bytes."""
    chunks = triton.cdiv(vocab + _LINE // 2 - 1, _CHUNK)
    kept = (every_row(device, rows), *_workspace(device, min(rows * chunks, _MOST_CHUNKS)))
    return sum(tensor.nbytes for tensor in kept)


def every_row(device: torch.device, rows: int) -> torch.Tensor:
    """``[rows]`` int32 on the device: 0, 1, 2, …"""
    kept = _every_row.get(device)
    if kept is None or len(kept) < rows:
        kept = _every_row[device] = torch.arange(
            triton.next_power_of_2(max(rows, 1024)), dtype=torch.int32, device=device
        )
    return kept


def current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current GPU, whichever its arguments are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _workspace(device: torch.device, chunks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for what the chunks of a batch leave: partials, and ranks of groups. One for a device, whatever its streams.

    284 bytes a chunk; for 256 rows of 151936 logits, whose chunks are rounded up to 16384, 4.7 MB.
    """
    kept = _workspaces.get(device)
    if device.type == "cuda":
        stream, last = torch.cuda.current_stream(device), _last_streams.get(device)
        if last is not None and last != stream:  # engines may start up on one stream and serve on another
            stream.wait_stream(last)
            for tensor in kept or ():
                tensor.record_stream(stream)
        _last_streams[device] = stream
    if kept is None or len(kept[1]) < chunks:
        room = triton.next_power_of_2(chunks)  # seldom grown: batches come in many sizes
        kept = (
            torch.empty((room, _PARTIALS), dtype=torch.float32, device=device),
            torch.empty((room, _CHUNK // _GROUP), dtype=torch.int32, device=device),
        )
        _workspaces[device] = kept
    return kept
