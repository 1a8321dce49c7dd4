"""The part of :mod:`integration.bench.steps` that runs in the engine."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from integration.bench.steps import KIND, RESULTS
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.sampler import Sampler

from corevital.engines.vllm.runner_v1 import V1Adapter


class Alternating(LogitsProcessor):
    """A logits processor that hides every other step of the runs "in turns", and times each step.

    A run begins where requests join the batch. The previous run is then written, as a line of JSON: its kind,
    microseconds from each step's sampling to the next one's, and microseconds of the frame thread's CPU since it began.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._kind = ""
        self._starts: list[int] = []
        self._frames_ns = 0
        apply, forward = V1Adapter.apply, Sampler.forward

        def apply_in_turns(adapter: V1Adapter, logits: Any) -> None:
            if not self._hidden("measured in turns"):
                apply(adapter, logits)

        def forward_in_turns(sampler: Sampler, logits: Any, sampling_metadata: Any, *others: Any) -> Any:
            self._starts.append(time.perf_counter_ns())
            if not self._hidden("logprobs in turns"):
                return forward(sampler, logits, sampling_metadata, *others)
            asked, sampling_metadata.max_num_logprobs = sampling_metadata.max_num_logprobs, None
            try:
                return forward(sampler, logits, sampling_metadata, *others)
            finally:
                sampling_metadata.max_num_logprobs = asked

        V1Adapter.apply = apply_in_turns  # type: ignore[method-assign, assignment]
        Sampler.forward = forward_in_turns

    def _hidden(self, kind: str) -> bool:
        return self._kind == kind and len(self._starts) % 2 == 1

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Any) -> Any:
        return logits

    def update_state(self, batch_update: Any) -> None:
        if batch_update is None or not batch_update.added:
            return
        (sender,) = (thread for thread in threading.enumerate() if thread.name == "corevital-frames")
        spent = time.clock_gettime_ns(time.pthread_getcpuclockid(sender.ident or 0))
        if len(self._starts) > 10:  # fewer: the requests of a run did not all join in one step
            gaps = [(after - before) / 1e3 for before, after in itertools.pairwise(self._starts)]
            line = {"kind": self._kind, "steps_us": gaps, "frames_us": (spent - self._frames_ns) / 1e3}
            with Path(os.environ[RESULTS]).open("a") as file:
                print(json.dumps(line), file=file)
        self._starts, self._frames_ns = [], spent
        self._kind = batch_update.added[0][1].extra_args[KIND]
