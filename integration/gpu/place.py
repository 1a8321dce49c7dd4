"""The device that is checked, and how large things are on it."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from integration.bench.machine import processor, versions

T = TypeVar("T")
SERVER = "0" * 32
RIGHT_INTERPRETER = "3.9"
"""From this version of Triton on: before it, the interpreter's ``max`` is NaN."""

PACKAGES = ("torch", "triton", "transformers", "numba", "numpy")


class Place(NamedTuple):
    """Where a check runs.

    Attributes:
        device: the first GPU; dry, the CPU.
        dry: tiny sizes, in Triton's interpreter.
    """

    device: torch.device
    dry: bool

    @classmethod
    def of(cls, dry: bool) -> Place:
        """A CPU poses as a GPU: its tables are then those of a GPU."""
        if dry:
            take_the_cpu_for_a_gpu()
        return cls(torch.device("cpu" if dry else "cuda:0"), dry)

    def size(self, real: T, dry: T) -> T:
        """One of two sizes."""
        return dry if self.dry else real

    @property
    def vocab(self) -> int:
        """Logits in a row, unless a check is about that."""
        return self.size(128256, 300)

    def wait(self) -> None:
        """Until the device has nothing to do."""
        if not self.dry:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Of a call, the device's work included."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def keep_busy(self, cycles: int) -> None:
        """Give the device something to do; half a second is about 1e9 cycles."""
        if not self.dry:
            torch.cuda._sleep(cycles)


def take_the_cpu_for_a_gpu() -> None:
    """A stand-in, for this process: see ``integration/tests/engine/conftest.py``, which does the same in tests."""
    from corevital.engines.vllm import runner_v1, runner_v2
    from corevital.kernels import available_backends
    from corevital.steps import recorder

    if "triton" not in available_backends("cpu"):
        raise RuntimeError("Triton's interpreter is off: set TRITON_INTERPRET=1 before anything imports triton")
    recorder.by_address = lambda device: None
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # the interpreter's, of rows of NaN
    for module in (recorder, runner_v1, runner_v2):
        module.is_compiled = lambda device: True  # type: ignore[attr-defined]


def triton_version() -> str:
    """Of the installed Triton, whatever its distribution is called."""
    import triton  # not at the top: whether it interprets is chosen before its import

    return str(triton.__version__)


def is_interpreter_right() -> bool:
    """Whether the installed Triton's interpreter computes what its compiler does."""
    found, needed = ([int(part) for part in text.split(".")[:2]] for text in (triton_version(), RIGHT_INTERPRETER))
    return found >= needed


def machine(place: Place) -> str:
    """The device, its driver and the versions."""
    if place.dry:
        return f"dry run, no GPU: {processor()}; {versions(*PACKAGES)}"
    name, count = torch.cuda.get_device_name(place.device), torch.cuda.device_count()
    runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{count} x {name}, driver {driver()}, {runtime}; {processor()}; {versions(*PACKAGES)}"


def driver() -> str:
    """The version of NVIDIA's driver, or ``unknown``."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


@contextlib.contextmanager
def nothing_synchronises(place: Place) -> Iterator[None]:
    """An error where a call of PyTorch waits for the device."""
    if place.dry:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def has_context(index: int) -> bool:
    """Whether this process has memory on a GPU for a context. Asks CUDA's driver, which makes none for that."""
    cuda = ctypes.CDLL("libcuda.so.1" if sys.platform == "linux" else "cuda")
    device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    for error in (
        cuda.cuDeviceGet(ctypes.byref(device), index),
        cuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)),
    ):
        if error:
            raise RuntimeError(f"CUDA's driver answers with error {error}")
    return bool(active.value)
