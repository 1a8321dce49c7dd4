"""What the plugin costs: the same requests in an engine without it and in one with it, in turns.

A round generates them once in each mode, in random order. A mode's ratio is its throughput over that of ``no plugin``
in the same round, so that a device that slows down slows all modes. ``unmeasured`` is a request to the engine with the
plugin that asks not to be measured. At temperature 0.7 Model Runner V2 copies the logits to float32 in any case, at 0
only where they are measured.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from typing import Any

from integration.bench.engine import prompts_of
from integration.bench.machine import interval, median_interval
from integration.gpu_vllm.jobs import Job
from integration.gpu_vllm.pair import Pair
from integration.gpu_vllm.table import FAIL, NOT_JUDGED, OPEN, PASS, Row

RATIO, SHARE = 0.99, 0.2
"""Goals: of the throughput without the plugin at least, and of what ``logprobs=20`` adds at most."""

TEMPERATURES = (0.0, 0.7)
_MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "no plugin": ("plain", {}),
    "unmeasured": ("plugin", {"extra_args": {"corevital_sample": 0}}),
    "measured": ("plugin", {}),
    "logprobs=20": ("plain", {"logprobs": 20}),
}
"""The engine that each asks, and how."""


def cost(engines: Pair, batches: list[int], rounds: int, tokens: int, is_judged: bool) -> Iterator[Row]:
    """A row a batch and temperature.

    Args:
        engines: both.
        batches: requests at once.
        rounds: that count, after one that warms up.
        tokens: of each request.
        is_judged: whether the goals hold here.
    """
    for batch in batches:
        for temperature in TEMPERATURES:
            runs = _seconds(engines, batch, temperature, rounds, tokens)
            yield _row(runs, batch, temperature, tokens, is_judged)


def _seconds(engines: Pair, batch: int, temperature: float, rounds: int, tokens: int) -> dict[str, list[float]]:
    rng = random.Random(5)
    prompts = prompts_of(rng, batch, engines.plain.vocab)
    runs: dict[str, list[float]] = {mode: [] for mode in _MODES}
    for number in range(rounds + 1):
        for mode in rng.sample(list(_MODES), len(_MODES)):
            name, extra = _MODES[mode]
            params = {"temperature": temperature, "max_tokens": tokens, "ignore_eos": True, **extra}
            seconds = getattr(engines, name).ask(Job(prompts, [params] * batch, "free")).seconds
            if number:
                runs[mode].append(seconds)
    return runs


def _row(runs: dict[str, list[float]], batch: int, temperature: float, tokens: int, is_judged: bool) -> Row:
    base = runs["no plugin"]
    ratios = {mode: [plain / own for plain, own in zip(base, times, strict=True)] for mode, times in runs.items()}
    adds = {mode: [own - plain for plain, own in zip(base, times, strict=True)] for mode, times in runs.items()}
    most = statistics.median(adds["logprobs=20"])
    share = statistics.median(adds["measured"]) / most if interval(adds["logprobs=20"])[0] > 0 else None
    cells = {
        "batch": str(batch),
        "temperature": str(temperature),
        "no plugin, tokens/s": f"{batch * tokens / statistics.median(base):.0f}",
        **{mode: median_interval(ratios[mode], ".3f") for mode in list(_MODES)[1:]},
        "of logprobs=20": "nothing to compare with" if share is None else f"{share:.0%}",
    }
    if not is_judged:
        return Row(cells, NOT_JUDGED)
    return Row(cells, judge(ratios["measured"], share))


def judge(ratios: list[float], share: float | None) -> str:
    """A goal is missed where the whole interval of the ratio is below it; open where a median alone misses it."""
    _, high = interval(ratios)
    if high < RATIO:
        return FAIL
    return PASS if statistics.median(ratios) >= RATIO and (share is None or share <= SHARE) else OPEN
