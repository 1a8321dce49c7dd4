"""Which rank reports which request: each exactly once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from integration.harness.runners import RUNNERS
from vllm.distributed import parallel_state

from corevital.engines.vllm import ranks


def place(monkeypatch: pytest.MonkeyPatch, tp: tuple[int, int], pcp: tuple[int, int] = (0, 1)) -> None:
    for name, (rank, size) in {"tp": tp, "pcp": pcp}.items():
        group = SimpleNamespace(rank_in_group=rank, world_size=size)
        monkeypatch.setattr(parallel_state, f"get_{name}_group", lambda group=group: group, raising=False)


def config(sharded: bool) -> Any:
    return SimpleNamespace(parallel_config=SimpleNamespace(enable_batch_sharded_sampling=sharded))


def test_alone_a_process_reports_everything() -> None:
    assert ranks.reports_logits() is True
    assert ranks.reported_slots(config(False))(3) is True


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_among_ranks_each_slot_is_reported_by_exactly_one(
    monkeypatch: pytest.MonkeyPatch, sharded: bool, size: int
) -> None:
    reporters = []
    for tp in range(size):
        for pcp in range(2):
            place(monkeypatch, (tp, size), (pcp, 2))
            reports = ranks.reported_slots(config(sharded))
            reporters += [slot for slot in range(32) if reports(slot)]
    assert sorted(reporters) == list(range(32))


def test_of_v1_ranks_the_first_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for tp in range(4):
        place(monkeypatch, (tp, 4))
        found.append(ranks.reports_logits())
    assert found == [True, False, False, False]


@pytest.mark.skipif("mrv2" not in RUNNERS, reason="this vLLM has no batch-sharded sampling")
def test_under_batch_sharded_sampling_a_rank_reports_the_slots_that_vllm_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch_shard = pytest.importorskip("vllm.v1.worker.gpu.sample.batch_shard")
    # the plan's device half is a Triton kernel; the host half says whose requests are whose
    monkeypatch.setattr(batch_shard, "_build_shard_plan_kernel", {(4,): lambda *args, **kwargs: None})
    slots = np.array([5, 0, 3, 6], np.int32)
    logits = torch.arange(5)
    one_each = torch.zeros(4, dtype=torch.int32)
    batch = SimpleNamespace(
        idx_mapping_np=slots, cu_num_logits_np=np.arange(5), seq_lens_cpu_upper_bound=torch.zeros(4), req_ids=[*"abcd"],
        idx_mapping=torch.from_numpy(slots), cu_num_logits=logits, expanded_idx_mapping=one_each, seq_lens=one_each,
        expanded_local_pos=one_each, query_start_loc=logits, num_draft_tokens_per_req=None,
    )  # fmt: skip
    monkeypatch.setattr(batch_shard, "replace", lambda _batch, **fields: SimpleNamespace(**fields))
    shown = []
    for rank in range(2):
        place(monkeypatch, (rank, 2))
        monkeypatch.setattr(batch_shard, "get_tp_group", parallel_state.get_tp_group)
        monkeypatch.setattr(batch_shard.triton, "next_power_of_2", lambda n: n, raising=False)
        local = batch_shard.BatchSharder(8, 1, torch.device("cpu")).shard_sampler_inputs(batch, None)[0]
        reports = ranks.reported_slots(config(True))
        assert [slot for slot in slots if reports(slot)] == local.idx_mapping_np.tolist()
        shown += local.idx_mapping_np.tolist()
    assert sorted(shown) == sorted(slots.tolist())
