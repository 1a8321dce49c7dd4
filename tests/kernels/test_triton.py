"""The Triton backend, as far as that goes without a GPU.

Its numbers are checked by the tests of every backend, in Triton's interpreter. That takes a separate process: the
interpreter has to be chosen before triton is imported, and would be chosen for an engine in the same process too.
Here the kernels are real ones, and what Triton would compile is looked at instead.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from corevital.kernels import available_backends, token_stats

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from corevital.kernels import triton_gpu as backend
from corevital.kernels.stats import HEAD_WORDS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INTERPRETED = not isinstance(backend.chunk_kernel, JITFunction)
compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: no kernel is compiled")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET is not set")

OTHER_VERSIONS = ["3.6.0", "3.7.1"]
"""Triton's versions beside the installed one that the kernels are compiled with; vLLM's builds for GPUs bring 3.7.1."""

CPU = torch.device("cpu")
VOCAB = 151936


TARGETS = [GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64), GPUTarget("hip", "gfx1100", 32)]


@pytest.fixture(params=TARGETS, ids=lambda target: str(target.arch))
def variants(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What calls compile for such a GPU, filled in as they are made: launches are recorded, and nothing runs."""
    seen: set[str] = set()
    monkeypatch.setattr(backend, "warp_size", lambda device: request.param.warp_size)

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
    assert len(warm) == 2 * 2  # two kernels, two dtypes
    for dtype in (torch.float32, torch.bfloat16):
        for logits in batches(dtype):
            for top_k in (1, 2, 16, 20, 32):
                backend.token_stats(logits, top_k)
                for before in (0, 1, 3):  # where the results go makes no variant either
                    table = torch.empty(len(logits), before + HEAD_WORDS + 2 * top_k, dtype=torch.int32)
                    backend.token_stats(logits, top_k, table[:, before:])
    assert variants == warm


@compiled
@pytest.mark.parametrize("vocab", [1, 16, 4094, 4096, 50257, 128256, 262142, 262144, (1 << 20) - 7])
def test_one_vocabulary_needs_six_kernels_at_most(variants: set[str], vocab: int) -> None:
    """Four, and a second one for rows of each dtype where unaligned rows take one chunk more than a power of two."""
    backend.warm_up(vocab, CPU)
    assert len(variants) <= 6
    warm = set(variants)
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 2, 16):
            for wider in (0, 1, 3, 8):
                backend.token_stats(torch.empty(rows, vocab + wider, dtype=dtype)[:, wider:], 20)
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
def test_a_cpu_is_not_a_gpu() -> None:
    assert "triton" not in available_backends("cpu")
    assert backend.supports(torch.device("cuda"))


@compiled
@pytest.mark.parametrize("version", [*OTHER_VERSIONS, "installed"])
def test_kernels_for_five_gpus_spill_nothing_and_read_16_bytes_at_a_time(version: str, tmp_path: Path) -> None:
    printed = with_triton(version, tmp_path, "-m", "integration.bench.kernel_ptx")
    assert version == "installed" or f"triton {version}," in printed
    for target in ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942", "hip:gfx1100"):
        assert printed.count(f"| {target} |") == 24, printed


@compiled
@pytest.mark.parametrize("version", [*OTHER_VERSIONS, "installed"])
def test_triton_accepts_each_launch_and_compiles_nothing_in_a_step(version: str, tmp_path: Path) -> None:
    printed = with_triton(version, tmp_path, "tests/kernels/launches.py")
    name = triton.__version__ if version == "installed" else version
    assert printed.splitlines() == [f"triton {name}: 6 compiled at the start", "compiled in a step: []"]


def with_triton(version: str, cache: Path, *command: str) -> str:
    """What a program prints with this version of Triton."""
    path = [str(ROOT / folder) for folder in ("plugin", "otel", ".")]
    if version != "installed":
        folder = ROOT / ".venv-triton" / version
        if not folder.is_dir():
            pytest.skip(f"Triton {version} is not in {folder.relative_to(ROOT)}: make test installs it")
        path.insert(0, str(folder))
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@compiled
def test_the_numbers_in_tritons_interpreter() -> None:
    if not _interpreter_is_right():
        pytest.skip(f"the interpreter of Triton {triton.__version__} takes a maximum with NaN for NaN; GPUs do not")
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


def _interpreter_is_right() -> bool:
    """Whether the interpreter passes over NaN in ``tl.max``, as the compiled kernel does. That of 3.7 does not."""
    code = """
import torch, triton, triton.language as tl
@triton.jit
def highest(values, out):
    tl.store(out, tl.max(tl.load(values + tl.arange(0, 2)), axis=0))
out = torch.zeros(1)
highest[(1,)](torch.tensor([float("nan"), 1.0]), out)
print(out.item())
"""
    with tempfile.TemporaryDirectory() as folder:  # the interpreter reads a kernel's source from its file
        path = Path(folder) / "highest.py"
        path.write_text(code)
        done = subprocess.run(
            [sys.executable, path], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
    return done.stdout.strip() == "1.0"


@interpreted
def test_fused_sums_are_the_sums() -> None:
    # The other tests go without them: this is the slow way, an entry at a time.
    logits = torch.randn(1, 4100, generator=torch.Generator().manual_seed(0))
    logits[0, 5] = float("nan")
    logits[0, 4099] = -float("inf")
    partials, ranks = torch.zeros(2, 7, 2), torch.zeros(2, 2, 64, dtype=torch.int32)
    for fused in (0, 1):
        at = torch.zeros(1, dtype=torch.int32)
        backend.chunk_kernel[(2,)](logits, 0, 0, at, 4100, 2, partials[fused], ranks[fused], FUSED=bool(fused))
    torch.testing.assert_close(partials[0], partials[1])
    assert torch.equal(ranks[0], ranks[1])


@interpreted
def test_the_interpreter_is_asked_for_by_name() -> None:
    assert "triton" in available_backends("cpu")
    assert not backend.supports(torch.device("cuda"))


@compiled
@pytest.mark.parametrize(("lanes", "warps"), [(32, 4), (64, 2)])
def test_a_program_has_as_many_threads_whatever_a_warp_has(
    lanes: int, warps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    for kernel in (backend.chunk_kernel, backend.row_kernel):
        monkeypatch.setattr(kernel, "run", lambda *_, num_warps, **__: seen.append(num_warps))
    monkeypatch.setattr(backend, "warp_size", lambda device: lanes)
    backend.token_stats(torch.empty(2, 32000), 20)
    assert seen == [warps, warps]


@compiled
def test_rows_of_more_than_a_gib_go_in_parts_through_one_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[int] = []
    for kernel in (backend.chunk_kernel, backend.row_kernel):
        monkeypatch.setattr(kernel, "run", lambda *_, grid, **__: grids.append(grid[0]))
    monkeypatch.setattr(backend, "_workspaces", {})
    backend.token_stats(torch.empty(1, 4096).expand(150_000, 4096), 20)
    assert grids == [65536, 65536, 65536, 65536, 18928, 18928]
    ((partials, ranks),) = backend._workspaces.values()
    assert partials.nbytes + ranks.nbytes == 65536 * (7 + 64) * 4
