"""Whole steps with and without: of a stand-in engine, and of transformers' ``generate``."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from integration.bench.machine import median_interval
from integration.gpu.engines import ENGINES, Batch
from integration.gpu.model import billion
from integration.gpu.place import SERVER, Place
from integration.gpu.records import Measuring
from integration.gpu.table import Goal, Report

from corevital.frames.stamp import Stamp
from corevital.steps.recorder import Observed
from corevital.steps.slots import Owners

_BATCHES = (1, 64, 256)
_JUDGED = 64
"""The batch that has a goal."""


def step(place: Place, report: Report) -> None:
    """The throughput of a model of a billion parameters with all measured, over that without.

    Without the plugin, and with one that is loaded and measures nothing.
    """
    for rows in place.size(_BATCHES, (2,)):
        model = billion(place, rows)
        report.figure(f"x {rows}: parameters", f"{model.parameters / 1e9:.3f} billion")
        for runner, make in ENGINES.items():
            with Measuring(place, rows) as measuring, torch.inference_mode():
                of: dict[str, Any] = {
                    "no plugin": make(place, model, Batch(rows, 0, ends=False), None),
                    "nobody measured": make(place, model, Batch(rows, 0, ends=False), measuring.recorder),
                    "measured": make(place, model, Batch(rows, rows, ends=False), measuring.recorder),
                }
                times = in_turns(place, {name: engine.step for name, engine in of.items()})
                lost = measuring.lost
            for name in ("no plugin", "nobody measured"):
                ratios = list(map(float.__truediv__, times[name], times["measured"]))
                plain, added = (
                    statistics.median(column) for column in (times[name], _less(times["measured"], times[name]))
                )
                more = f"{median_interval(ratios, '.4f')}, step {plain * 1e3:.3f} ms, added {added * 1e6:.0f} us"
                check = f"{runner} x {rows}: ratio to {name}"
                if rows in (_JUDGED, 2):
                    report.goal(check, statistics.median(ratios), Goal(">=", 0.99), more)
                else:
                    report.figure(check, more)
            report.check(f"{runner} x {rows}: rows lost", not lost, f"{lost}", "= 0")


def _less(these: list[float], those: list[float]) -> list[float]:
    return [a - b for a, b in zip(these, those, strict=True)]


def in_turns(place: Place, steps: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds a step, of rounds in which each gets a turn of 20 steps, in random order; paired by round."""
    names, rng, turn = list(steps), random.Random(3), place.size(20, 1)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(place.size(26, 3)):
        for name in rng.sample(names, len(names)):
            for _ in range(place.size(3, 1)):
                steps[name]()
            spent = place.seconds(lambda: [steps[name]() for _ in range(turn)])  # noqa: B023 - called here
            if number:  # the first warms up
                times[name].append(spent / turn)
    return times


class Observing:
    """A logits processor of transformers that measures, and changes nothing.

    Args:
        measuring: what it measures with.
        rows: of the batch.
    """

    def __init__(self, measuring: Measuring, rows: int) -> None:
        self._recorder = measuring.recorder
        self._owners = Owners.of([Stamp(SERVER, key) for key in range(1, rows + 1)], [0.7] * rows)
        self._before: Observed | None = None
        self._index = 0

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Settle the token before, and observe what the next one is sampled from."""
        if self._before is not None:
            self._recorder.record_tokens(self._before, ids[:, -1].to(torch.int32))
        rows = len(logits)
        self._before = self._recorder.record_logits(logits, None, list(range(rows)), [self._index] * rows, self._owners)
        self._index += 1
        return logits


def generate(place: Place, report: Report) -> None:
    """The same tokens from ``generate`` with and without, and what it costs there, where the host is slow."""
    from transformers import LlamaForCausalLM, LogitsProcessorList

    with place.device:
        model = LlamaForCausalLM(_llama(place)).to(place.size(torch.bfloat16, torch.float32)).eval()
    for rows in place.size((1, 32), (2,)):
        new, is_same = place.size(48, 3), True
        times: tuple[list[float], list[float]] = ([], [])
        prompt = torch.randint(5, place.size(500, 200), (rows, 16), device=place.device)
        with Measuring(place, rows) as measuring:
            for number in range(place.size(8, 2)):
                outputs = []
                for observed in (False, True) if number % 2 else (True, False):
                    torch.manual_seed(number)
                    processors = LogitsProcessorList([Observing(measuring, rows)] if observed else [])
                    place.wait()
                    start = time.perf_counter()
                    outputs.append(
                        model.generate(
                            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=True,
                            temperature=0.7, top_k=50, logits_processor=processors,
                        )
                    )  # fmt: skip
                    place.wait()
                    times[observed].append((time.perf_counter() - start) / new)
                is_same &= torch.equal(*outputs)
            lost = measuring.lost
        plain, ours = (statistics.median(column[1:]) for column in times)
        report.check(f"x {rows}: the same tokens", is_same and outputs[0].shape[1] == 16 + new)
        report.check(f"x {rows}: rows lost", not lost, f"{lost}", "= 0")
        report.figure(f"x {rows}: ratio", f"{plain / ours:.3f}; {plain * 1e3:.2f} and {ours * 1e3:.2f} ms a token")


def _llama(place: Place) -> Any:
    from transformers import LlamaConfig

    size = place.size(
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    heads = place.size(8, 2)
    return LlamaConfig(
        vocab_size=place.vocab, num_key_value_heads=heads, eos_token_id=None, pad_token_id=0, bos_token_id=1, **size
    )
