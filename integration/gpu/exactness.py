"""What the kernels compute: compiled before it is needed, and right."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from integration.gpu.calls import CALLS
from integration.gpu.place import Place
from integration.gpu.records import Measuring
from integration.gpu.table import Goal, Report

from corevital.kernels import token_stats
from corevital.steps.device import can_serve

BATCHES = (1, 2, 15, 16, 17, 33, 256)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The kernels that Triton compiles meanwhile, as vLLM's monitor sees them."""
    from triton import knobs

    seen: list[str] = []

    def note(**described: object) -> None:
        seen.append(str(described.get("repr")))

    before, knobs.runtime.jit_post_compile_hook = knobs.runtime.jit_post_compile_hook, note
    try:
        yield seen
    finally:
        knobs.runtime.jit_post_compile_hook = before


def warm(place: Place, report: Report) -> None:
    """Nothing compiles once a worker has started, whatever the batch is and wherever its logits lie."""
    start = time.perf_counter()
    with compilations() as first:
        if not place.dry:  # which asks for the kernels of the device's type
            report.check("the plugin measures on this device", can_serve(place.vocab, place.device))
        measuring = Measuring(place, max(BATCHES))
    took = time.perf_counter() - start
    report.figure("start of a worker, nothing cached", f"{took:.1f} s, {len(first)} kernels")
    with measuring, compilations() as seen:
        whole = torch.randn(place.size(258, 4), place.vocab + 65, device=place.device)
        for rows in place.size(BATCHES, (1, 2)):
            logits = whole[:rows, : place.vocab].contiguous()
            for make in CALLS.values():
                for measured in {rows, max(rows // 2, 1)}:
                    call = make(place, rows, measuring.recorder, measured)
                    for _ in range(2):
                        call(logits)
            for dtype in (torch.float32, torch.bfloat16):
                cast = whole.to(dtype)
                for first_row, column in ((0, 0), (1, 1), (0, 8)):
                    view = cast[first_row : first_row + rows, column : column + place.vocab]
                    token_stats(view, top_k=20, backend="triton")
        place.wait()
    report.goal("kernels compiled while serving", len(seen), Goal("=", 0), "; ".join(sorted(set(seen)))[:200])


def exact(place: Place, report: Report) -> None:
    """Statistics against float64, over vocabularies, batches, dtypes and spreads; masked entries among them."""
    worst: Counter[str] = Counter()
    generator = torch.Generator(place.device).manual_seed(1)
    for vocab in place.size((2048, 32000, 50257, 128256, 151936, 262144), (300, 4200)):
        for rows, spread in zip(place.size((1, 3, 64, 256), (1, 3)), (3.0, 0.3, 12.0, 3.0), strict=False):
            for dtype in (torch.float32, torch.bfloat16):
                logits = torch.randn(rows, vocab, device=place.device, generator=generator) * spread
                logits[0, ::7] = -torch.inf
                compare(logits.to(dtype), worst)
    report.check("logsumexp, largest error", worst["logsumexp"] < 1e-5, f"{worst['logsumexp']:.1e}", "< 1e-05")
    report.check("entropy, largest error", worst["entropy"] < 2e-5, f"{worst['entropy']:.1e}", "< 2e-05")
    report.check("top 20 that are others", not worst["ids"], f"{worst['ids']}", "= 0")


def compare(logits: torch.Tensor, worst: Counter[str]) -> None:
    """Add the largest errors of a batch, and how many of its likeliest tokens are others."""
    stats = token_stats(logits, top_k=20, backend="triton")
    wide = logits.double()
    logprobs = wide.log_softmax(-1)
    entropy = -torch.where(logprobs.exp() > 0, logprobs.exp() * logprobs, 0.0).sum(-1)
    # a NaN is an error without bound, and the largest of anything and NaN is not
    for name, wanted in (("logsumexp", wide.logsumexp(-1)), ("entropy", entropy)):
        error = (getattr(stats, name) - wanted).abs().nan_to_num(nan=torch.inf).max()
        worst[name] = max(worst[name], float(error))  # type: ignore[assignment]
    ids = logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :20]
    worst["ids"] += int((stats.topk_ids != ids).sum())


def big(place: Place, report: Report) -> None:
    """Rows that lie beyond the 2^31st logit: offsets of 32 bits would read others."""
    rows, vocab = place.size((17000, 131072), (8, 300))
    logits = torch.zeros(rows, vocab, device=place.device)
    logits[-3:].normal_()
    whole = token_stats(logits, backend="triton").words[-3:]
    alone = token_stats(logits[-3:].clone(), backend="triton").words
    report.check(f"last rows of {rows} x {vocab} logits", torch.equal(whole, alone))
