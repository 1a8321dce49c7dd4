"""An adapter's calls of a step, without an engine around them."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from integration.gpu.engines import params
from integration.gpu.place import Place

from corevital.engines.vllm.runner_v1 import V1Adapter
from corevital.engines.vllm.runner_v2 import V2Adapter
from corevital.steps.recorder import Recorder

_TOKEN = 3
_LONGEST = 3000


class V1Calls:
    """What model runner V1 calls: ``update_state``, then ``observe``.

    Args:
        place: where.
        rows: of the batch.
        recorder: behind the adapter.
        measured: how many rows ask for it; None: all.
    """

    def __init__(self, place: Place, rows: int, recorder: Recorder, measured: int | None = None) -> None:
        self._adapter = V1Adapter(recorder)
        self._outputs: list[list[int]] = [[] for _ in range(rows)]
        wanted = rows if measured is None else measured
        added = [(i, params(i + 1 if i < wanted else None, 0.7), [1], o) for i, o in enumerate(self._outputs)]
        self._adapter.update_state(SimpleNamespace(removed=[], added=added, moved=[]))

    def __call__(self, logits: torch.Tensor) -> float:
        """One step. Returns the host's seconds."""
        start = time.perf_counter()
        self._adapter.update_state(None)
        self._adapter.apply(logits)
        spent = time.perf_counter() - start
        for output in self._outputs:
            output.append(_TOKEN)
        if len(self._outputs[0]) > _LONGEST:
            for output in self._outputs:
                output.clear()
        return spent


class V2Calls:
    """What Model Runner V2 calls: ``settle``, then ``observe``. Arguments as for :class:`V1Calls`."""

    def __init__(self, place: Place, rows: int, recorder: Recorder, measured: int | None = None) -> None:
        prompt = np.full(rows, 4, np.int32)
        states: Any = SimpleNamespace(
            max_num_reqs=rows,
            all_token_ids=SimpleNamespace(gpu=torch.full((rows, 64), _TOKEN, dtype=torch.int32, device=place.device)),
            total_len=SimpleNamespace(gpu=torch.full((rows,), 10, dtype=torch.int32, device=place.device)),
            prompt_len=SimpleNamespace(np=prompt),
            prefill_len=SimpleNamespace(np=prompt),
        )
        self._adapter = V2Adapter(recorder, states)
        for slot in range(rows if measured is None else measured):
            self._adapter.add_request(slot, params(slot + 1, 0.7))
        self._context: Any = SimpleNamespace(
            idx_mapping_np=np.arange(rows),
            expanded_idx_mapping=torch.arange(rows, device=place.device),
            pos=torch.full((rows,), 8, device=place.device),
        )

    def __call__(self, logits: torch.Tensor) -> float:
        """One step. Returns the host's seconds."""
        start = time.perf_counter()
        self._adapter.apply_staged_writes()
        self._adapter.apply(logits, self._context)
        return time.perf_counter() - start


CALLS: dict[str, Callable[..., Callable[[torch.Tensor], float]]] = {"V1": V1Calls, "V2": V2Calls}
