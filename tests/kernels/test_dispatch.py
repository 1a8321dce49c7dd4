"""Which backend runs, what the result looks like, and the errors for what is not available."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import corevital.kernels.api
from corevital.kernels import Backend, BackendUnavailableError, available_backends, token_stats, warm_up

FLOATS = ("logsumexp", "entropy", "varentropy", "max_logit", "top1_prob", "margin", "topk_mass")
COUNTS = ("nan_count", "posinf_count", "neginf_count")
CPU_BACKENDS = available_backends("cpu")


def run(script: str) -> str:
    """The output of a fresh Python."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def forget() -> None:
    """What has been found out about backends."""
    corevital.kernels.api._load.cache_clear()
    corevital.kernels.api._choose.cache_clear()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Make a module impossible to import, as if it were not installed."""

    def hide(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
        forget()

    yield hide
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_field_has_its_shape_and_dtype(backend: Backend, dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 77, dtype=dtype)
    stats = token_stats(logits, top_k=5, backend=backend)
    for name in FLOATS:
        assert (getattr(stats, name).dtype, getattr(stats, name).shape) == (torch.float32, (3,)), name
    for name in COUNTS:
        assert (getattr(stats, name).dtype, getattr(stats, name).shape) == (torch.int32, (3,)), name
    assert (stats.topk_ids.dtype, stats.topk_ids.shape) == (torch.int32, (3, 5))
    assert (stats.topk_logprobs.dtype, stats.topk_logprobs.shape) == (torch.float32, (3, 5))
    for name in stats.__slots__:
        field = getattr(stats, name)
        assert field.device == logits.device, name
    assert stats.topk_ids.stride(1) == stats.topk_logprobs.stride(1) == 1


def test_top_k_is_20_by_default() -> None:
    assert token_stats(torch.zeros(1, 50)).topk_ids.tolist() == [list(range(20))]


@pytest.mark.parametrize(("backend", "module"), [("triton", "triton_gpu"), ("numba", "numba_cpu")])
def test_a_backend_that_is_not_installed_is_refused_by_name(backend: Backend, module: str, without) -> None:
    without(f"corevital.kernels.{module}")
    assert backend not in available_backends("cpu")
    with pytest.raises(BackendUnavailableError, match=f"(?s)'{backend}' is not available.*backend='auto'") as caught:
        token_stats(torch.zeros(1, 5), backend=backend)
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendUnavailableError):
        warm_up(5, backend=backend)


def test_a_backend_for_another_device_is_refused_by_name() -> None:
    if "numba" not in CPU_BACKENDS:
        pytest.skip("numba is not installed")
    with pytest.raises(BackendUnavailableError, match="'numba' cannot read logits on meta; use backend='auto'"):
        token_stats(torch.zeros(1, 5, device="meta"), backend="numba")


def test_auto_does_without_what_is_not_installed(without) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    expected = token_stats(logits)
    without("corevital.kernels.numba_cpu", "corevital.kernels.triton_gpu")
    assert warm_up(5) == "torch"
    actual = token_stats(logits)
    torch.testing.assert_close(actual.entropy, expected.entropy)
    assert torch.equal(actual.topk_ids, expected.topk_ids)


@pytest.mark.skipif("numba" not in CPU_BACKENDS, reason="numba is not installed")
def test_auto_is_numba_on_the_cpu() -> None:
    assert warm_up(5) == "numba"


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        ([[1.0]], TypeError, "must be a torch.Tensor"),
        (torch.zeros(2, 5, dtype=torch.int64), TypeError, "int64"),
        (torch.zeros(2, 5, dtype=torch.float64), TypeError, r"float64; convert with logits.float\(\)"),
        (torch.zeros(5), ValueError, r"two dimensions.*\[5\]"),
        (torch.zeros(1, 2, 5), ValueError, r"two dimensions.*\[1, 2, 5\]"),
        (torch.zeros(2, 0), ValueError, "at least one"),
    ],
)
def test_other_logits_are_refused(logits, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        token_stats(logits)


@pytest.mark.parametrize(("top_k", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_other_top_k_are_refused(top_k, error: type[Exception]) -> None:
    with pytest.raises(error, match="top_k"):
        token_stats(torch.zeros(1, 5), top_k=top_k)


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="auto, triton, numba, torch, got 'cupy'"):
        token_stats(torch.zeros(1, 5), backend="cupy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="vocab_size"):
        warm_up(0)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numba', 'triton', 'numpy'} & set(sys.modules)"
    assert run(f"import sys, corevital.kernels; print({heavy})") == "set()"


def test_the_torch_backend_never_looks_at_values() -> None:
    # Tensors of the meta device have none: whatever needs one on the host raises.
    stats = token_stats(torch.zeros(70, 70000, device="meta", dtype=torch.bfloat16), backend="torch")
    assert stats.entropy.shape == (70,)
    assert stats.topk_ids.shape == (70, 20)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", available_backends("cuda") if torch.cuda.is_available() else [])
def test_nothing_waits_for_the_gpu(backend: Backend) -> None:
    logits = torch.randn(70, 70000, device="cuda")
    warm_up(70000, device="cuda", backend=backend)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        token_stats(logits, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_results_outlive_later_calls(backend: Backend) -> None:
    # The caller's copies of them are queued, and read a step later.
    stats = token_stats(torch.arange(300.0).repeat(4, 1), backend=backend)
    before = {name: getattr(stats, name).clone() for name in stats.__slots__}
    for rows in (4, 9):
        token_stats(torch.zeros(rows, 300), backend=backend)
    for name, value in before.items():
        assert torch.equal(getattr(stats, name), value), name


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_threads_may_call_at_the_same_time(backend: Backend) -> None:
    vocab = 6000 if backend == "triton" else 40000  # its interpreter is slow
    batches = [torch.randn(8, vocab, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    alone = [token_stats(batch, backend=backend) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: token_stats(batch, backend=backend), batches))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.topk_ids, other.topk_ids)
        torch.testing.assert_close(one.entropy, other.entropy)


@pytest.mark.skipif("numba" not in CPU_BACKENDS, reason="numba is not installed")
class TestNumba:
    def test_warm_up_leaves_nothing_to_compile(self) -> None:
        script = """
import torch
from numba.core import event
from corevital.kernels import token_stats, warm_up; from corevital.kernels.api import by_address
warm_up(1000)
with event.install_recorder("numba:compile") as compilations:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for rows in (1, 2, 300):
            token_stats(torch.zeros(rows, 1001, dtype=dtype), top_k=7)
            token_stats(torch.zeros(1001, rows, dtype=dtype).t())
    by_address(torch.device("cpu")).write_sampled([], 1, False, 0, 1, 0, 0, 1, 0)
print(len(compilations.buffer))
"""
        assert run(script) == "0"

    def test_a_forked_process_can_go_on(self) -> None:
        script = """
import os, torch
from corevital.kernels import token_stats
torch.set_num_threads(2)
logits = torch.randn(64, 20000)
before = token_stats(logits, backend="numba").entropy.tolist()
if (child := os.fork()) == 0:
    os._exit(0 if token_stats(logits, backend="numba").entropy.tolist() == before else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        assert run(script) == "0"

    def test_what_was_compiled_is_kept_and_a_damaged_file_does_no_harm(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        imported = "from corevital.kernels.numba_cpu.rows import compiled_task as c"
        script = f"{imported}\nprint(bool(c().address), c().cache_hits)"
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
        assert [run(script), run(script)] == ["True 0", "True 1"]
        for file in tmp_path.rglob("*.nb?"):
            file.write_bytes(b"")
        assert run(script) == "True 0"

    def test_an_installation_that_cannot_be_written_to_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from numba.core import caching

        from corevital.kernels.numba_cpu import rows as numba_rows

        monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
        assert numba_rows.compiled_task.__wrapped__().address != 0
