"""The Triton backend, as far as that goes without a GPU.

Its numbers are checked by the tests of every backend, in Triton's interpreter. That takes a process of its own: the
interpreter has to be chosen before triton is imported, and would be chosen for an engine in the same process too.
Here the kernels are real ones, and what Triton would compile is looked at instead.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from corevital.kernels import available_backends, token_stats

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from corevital.kernels import triton as backend
from corevital.kernels.stats import HEAD_WORDS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INTERPRETED = not isinstance(backend.chunk_kernel, JITFunction)
compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: no kernel is compiled")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET is not set")

CPU = torch.device("cpu")
VOCAB = 151936


TARGETS = [GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]


@pytest.fixture(params=TARGETS, ids=lambda target: target.backend)
def variants(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What calls compile for such a GPU, filled in as they are made: launches are recorded, and nothing runs."""
    seen: set[str] = set()

    def record(kernel: JITFunction) -> None:
        bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(request.param))

        def launch(*arguments: object, grid: object, warmup: bool, **options: object) -> None:
            # The key under which Triton keeps a compiled kernel, but for settings of the whole process.
            _, specialization, options = bind(*arguments, **options)
            seen.add(f"{kernel.__name__} {specialization} {options}")

        monkeypatch.setattr(kernel, "run", launch)

    record(backend.chunk_kernel)
    record(backend.row_kernel)
    return seen


def batches(dtype: torch.dtype) -> list[torch.Tensor]:
    """Batches of one vocabulary that differ in all that a step may change."""
    padded = torch.empty(40, VOCAB + 65, dtype=dtype)
    whole = torch.empty(33, VOCAB, dtype=dtype)
    return [
        *(whole[:rows] for rows in (1, 2, 15, 16, 17, 33)),
        *(whole[rows:] for rows in (1, 31, 32)),
        *(padded[:rows, :VOCAB] for rows in (1, 2, 16, 17)),
        *(padded[:16, start : start + VOCAB] for start in (1, 2, 8, 16, 64)),
        whole[::2],
        whole[:1].expand(5, VOCAB),
        torch.empty(VOCAB, 2, dtype=dtype).t(),
    ]


@compiled
def test_no_batch_needs_a_kernel_that_warm_up_does_not_compile(variants: set[str]) -> None:
    backend.warm_up(VOCAB, CPU)
    warm = set(variants)
    # Two dtypes; the first kernel for aligned rows and for others.
    assert len(warm) == 2 * 2 + 2
    for dtype in (torch.float32, torch.bfloat16):
        for logits in batches(dtype):
            for top_k in (1, 2, 16, 20, 32):
                backend.token_stats(logits, top_k)
                for before in (0, 1, 3):  # where the results go is no variant either
                    table = torch.empty(len(logits), before + HEAD_WORDS + 2 * top_k, dtype=torch.int32)
                    backend.token_stats(logits, top_k, table[:, before:])
    assert variants == warm


@compiled
@pytest.mark.parametrize("vocab", [1, 16, 4096, 50257, 128256, 262144, 1 << 20])
def test_one_vocabulary_needs_six_kernels_at_most(variants: set[str], vocab: int) -> None:
    backend.warm_up(vocab, CPU)
    assert len(variants) <= 6
    warm = set(variants)
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 2, 16):
            backend.token_stats(torch.empty(rows, vocab, dtype=dtype), 20)
    assert variants == warm


@compiled
@pytest.mark.parametrize(("vocab", "top_k"), [(5000, 257), ((1 << 20) + 1, 20)])
def test_what_no_kernel_can_hold_is_left_to_torch(variants: set[str], vocab: int, top_k: int) -> None:
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0))
    ids = backend.token_stats(logits, top_k).topk_ids
    assert not variants
    assert torch.equal(ids, token_stats(logits, top_k=top_k, backend="torch").topk_ids)


@compiled
def test_a_step_allocates_its_results_and_nothing_else(variants: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.empty(256, 4097)
    backend.token_stats(logits, 20)
    sizes = []
    empty = torch.empty

    def counted(*size: object, **options: object) -> torch.Tensor:
        made = empty(*size, **options)
        sizes.append(made.nbytes)
        return made

    monkeypatch.setattr(torch, "empty", counted)
    for rows in (256, 3, 200):
        stats = backend.token_stats(logits[:rows], 20)
        table = stats.entropy.untyped_storage()
        assert sizes == [table.nbytes()]
        assert {getattr(stats, name).untyped_storage().data_ptr() for name in stats.__slots__} == {table.data_ptr()}
        sizes.clear()


@compiled
def test_a_cpu_is_no_gpu() -> None:
    assert "triton" not in available_backends("cpu")
    assert backend.supports(torch.device("cuda"))


@compiled
def test_kernels_for_an_h100_spill_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "integration/bench/kernel_ptx.py"],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("row_kernel") == 4, done.stdout


@compiled
def test_the_numbers_in_tritons_interpreter() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton or auto", HERE),
            # Where numbers overflow or are not there, numpy warns, which the interpreter computes with.
            *("-W", "ignore::RuntimeWarning"),
        ],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 100, "only some of the tests ran:\n" + done.stdout


@interpreted
def test_fused_sums_are_the_sums() -> None:
    # The other tests go without them: this is the slow way, an entry at a time.
    logits = torch.randn(1, 4100, generator=torch.Generator().manual_seed(0))
    logits[0, 5] = float("nan")
    logits[0, 4099] = -float("inf")
    partials, ranks = torch.zeros(2, 7, 2), torch.zeros(2, 2, 64, dtype=torch.int32)
    for fused in (0, 1):
        backend.chunk_kernel[(2,)](logits, 0, 4100, 2, partials[fused], ranks[fused], ALIGNED=True, FUSED=bool(fused))
    torch.testing.assert_close(partials[0], partials[1])
    assert torch.equal(ranks[0], ranks[1])


@interpreted
def test_the_interpreter_is_asked_for_by_name() -> None:
    assert "triton" in available_backends("cpu")
    assert not backend.supports(torch.device("cuda"))
