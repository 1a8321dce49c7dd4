"""What is known of the tokens sampled from rows of logits, in one small kernel: the other half of a step on a GPU.

:func:`token_kernel` finds each row's token, and reads the logits of it and of the row's likeliest token as the sampler
has left them.
"""

from __future__ import annotations

import triton.language as tl

from corevital.kernels.triton_gpu.stages import kernel, widened

__all__ = ["BLOCK", "token_kernel"]

BLOCK = tl.constexpr(128)
"""Rows of a program."""


@kernel(
    "rows",
    "logits",
    "stride",
    "at",
    "vocab",
    "kept",
    "table",
    "width",
    "ids",
    "known",
    "known_stride",
    "known_tokens",
    "total",
)
def token_kernel(
    rows: tl.tensor,
    logits: tl.tensor,
    stride: tl.tensor,
    at: tl.tensor,
    vocab: tl.tensor,
    kept: tl.tensor,
    table: tl.tensor,
    width: tl.tensor,
    ids: tl.tensor,
    known: tl.tensor,
    known_stride: tl.tensor,
    known_tokens: tl.tensor,
    total: tl.tensor,
    SLOT: tl.constexpr,
    POSITION: tl.constexpr,
    LIKELIEST: tl.constexpr,
    TOKEN: tl.constexpr,
    REJECTED: tl.constexpr,
    GIVEN: tl.constexpr,
) -> None:
    """Write each row's token, and as the bits of float32 its logit and that of the row's likeliest token.

    The grid is ``ceil(rows / BLOCK)`` programs.

    Args:
        rows: of the table.
        logits: ``[R, vocab]`` float32 or bfloat16, a row contiguous.
        stride: entries from one of its rows to the next.
        at: ``[rows]`` int32, which of the logits' rows each one is.
        vocab: at least 1.
        kept: ``rows``; or 0, where the logits may not be read any more, and the two are NaN.
        table: ``[rows, width]`` int32, the words of a row of a frame, then three for what is written.
        width: words from one row to the next.
        ids: ``[rows]`` int32, the tokens, where ``GIVEN``; may be pinned memory of the host.
        known: else ``[slots, known_tokens]`` int32, the tokens of each slot's sequence.
        known_stride: from one slot to the next.
        known_tokens: how many there are at most.
        total: ``[slots]`` int32, tokens that each slot's sequence has. A row whose token is not among them is REJECTED.
        SLOT, POSITION, LIKELIEST, TOKEN: words of a row.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = row < rows
    words = table + row.to(tl.int64) * width
    if GIVEN:
        token = tl.load(ids + row, mask=there, other=REJECTED)
    else:
        slot = tl.load(words + SLOT, mask=there, other=0).to(tl.int64)
        owned = there & (slot >= 0)
        length = tl.load(words + POSITION, mask=there, other=0) + 1
        last = tl.minimum(length, known_tokens - 1)
        token = tl.load(known + slot * known_stride + last, mask=owned, other=REJECTED)
        accepted = length < tl.minimum(tl.load(total + slot, mask=owned, other=0), known_tokens)
        token = tl.where(accepted, token, REJECTED)
    source = tl.load(at + row, mask=there, other=0).to(tl.int64)
    start = logits + source * stride
    # a prompt's token may lie beyond the logits, where a model has more embeddings than outputs: nobody asks for it
    place = tl.minimum(tl.maximum(token, 0), vocab - 1)
    best = tl.minimum(tl.maximum(tl.load(words + LIKELIEST, mask=there, other=0), 0), vocab - 1)
    readable = row < kept
    floats = words.to(tl.pointer_type(tl.float32))
    tl.store(words + TOKEN, token, mask=there)
    tl.store(floats + TOKEN + 1, widened(tl.load(start + place, mask=readable, other=float("nan"))), mask=there)
    tl.store(floats + TOKEN + 2, widened(tl.load(start + best, mask=readable, other=float("nan"))), mask=there)
