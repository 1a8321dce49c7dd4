"""Which rank reports a request: of ranks that see the same logits exactly one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def reports_logits() -> bool:
    """Whether this rank reports. With tensor or context parallelism every rank samples the same, and rank 0 reports."""
    return all(rank == 0 for rank, _ in (_place("tp"), _place("pcp")))


def reported_slots(vllm_config: Any) -> Callable[[int], bool]:
    """Which slots of Model Runner V2 this rank reports.

    With batch-sharded sampling each tensor-parallel rank sees the requests in its own slots. vLLM switches that off
    for a model that does not support it; then all ranks see everything, and each still reports the same slots.
    """
    rank, size = _place("tp")
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False) and _place("pcp")[0] == 0:
        return lambda slot: slot % size == rank
    reports = reports_logits()
    return lambda slot: reports


def _place(group: str) -> tuple[int, int]:
    """This process's rank in a parallel group, and the group's size."""
    from vllm.distributed import parallel_state

    try:
        found = getattr(parallel_state, f"get_{group}_group")()
        return int(found.rank_in_group), int(found.world_size)
    except (AttributeError, AssertionError):  # not in this version; no such group in this process
        return 0, 1
