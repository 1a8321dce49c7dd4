"""Launches every kernel of a step as a GPU would be sent it: ``python tests/kernels/launches.py``.

A stand-in for the driver says that there is an H100, and launches only compile. So Triton makes all its own checks of a
launch, which neither its interpreter nor its compiler alone makes. Prints how many kernels were compiled at the start,
then those that steps compiled besides: there must be none.
"""

import functools
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from corevital.kernels import triton_gpu
from corevital.kernels.triton_gpu.tokens import token_kernel
from corevital.steps.gpu_tables import GpuTables
from corevital.steps.step import Kept

VOCAB, ROWS = 300, 8


class Driver:
    """Stands in for that of a GPU."""

    utils = None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compiled() -> list[str]:
    """A line for each compiled kernel."""
    kernels: Any = (triton_gpu.chunk_kernel, triton_gpu.row_kernel, token_kernel)
    return sorted(f"{kernel.__name__} {key}" for kernel in kernels for key in kernel.device_caches[0][0])


def main() -> None:
    driver.set_active(Driver())
    JITFunction.run = functools.partialmethod(launch, JITFunction.run)
    tables = GpuTables(torch.device("cpu"), ROWS)
    tables.warm_up(VOCAB)
    before = compiled()
    known, total = torch.zeros(ROWS, 9, dtype=torch.int32), torch.zeros(ROWS, dtype=torch.int32)
    some = torch.arange(3, dtype=torch.int32)
    listed = list(range(ROWS))
    for slots in (torch.arange(ROWS), torch.arange(ROWS, dtype=torch.int32)):
        for kept in (True, False):
            logits = torch.zeros(ROWS, VOCAB)
            table = tables.measure(logits, None, slots, slots.long())
            assert table is not None
            table.tokens(logits if kept else None, None, Kept(known, total))
            table = tables.measure(logits, some, listed[:3], listed[:3])
            assert table is not None
            table.tokens(logits if kept else None, some, listed[:3])
    print(f"triton {triton.__version__}: {len(before)} compiled at the start")
    print("compiled in a step:", [line for line in compiled() if line not in before])


def launch(kernel: Any, run: Any, *arguments: Any, **options: Any) -> Any:
    """In place of ``JITFunction.run``: everything but the launch."""
    return run(kernel, *arguments, **options | {"warmup": True})


if __name__ == "__main__":
    main()
