"""Compile the Triton kernels for GPUs that need not be there; print the registers that a thread takes, and spills.

    python -m integration.bench.kernel_ptx [--targets cuda:80 cuda:90 cuda:100 hip:gfx942 hip:gfx1100]

Exit 1 if a variant that an engine's start compiles spills registers to memory, or if its first kernel
does not read whole chunks 16 bytes at a time. The last columns: threads of a program; registers of a thread; bytes that
a thread spills; programs that the registers of an SM hold at once.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from corevital.kernels import triton_gpu as backend
from corevital.kernels.triton_gpu.tokens import token_kernel
from corevital.steps.gpu_tables import GpuTables

SIZES = [(32, 128256), (64, 50257), (256, 151936)]
REGISTERS = 1 << 16  # of an SM, from Volta to Blackwell
TARGETS = ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942", "hip:gfx1100"]


class Recorder:
    """Stands in for a kernel's launcher: keeps what Triton would compile for the target, once for each variant."""

    def __init__(self, kernel: Any, target: GPUTarget) -> None:
        self.kernel = kernel
        self.target = target
        self.compiler = make_backend(target)
        self.binder = create_function_from_signature(kernel.signature, kernel.params, self.compiler)
        self.variants: dict[str, tuple[ASTSource, dict[str, Any]]] = {}

    def __call__(self, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        bound, specialization, options = self.binder(*arguments, **options)
        names = [parameter.name for parameter in self.kernel.params]
        signature = dict(zip(names, (kind for kind, _ in specialization), strict=True))
        constants = {(i,): bound[name] for i, name in enumerate(names) if signature[name] == "constexpr"}
        attributes = {
            (i,): self.compiler.parse_attr(value)
            for i, (kind, value) in enumerate(specialization)
            if kind != "constexpr" and isinstance(value, str)
        }
        source = ASTSource(self.kernel, signature, constants, attributes)
        self.variants[f"{specialization} {options}"] = (source, options)

    def compiled(self) -> list[Any]:
        """The kernels."""
        return [
            triton.compile(source, target=self.target, options=options) for source, options in self.variants.values()
        ]


def usage(compiled: Any) -> tuple[int, int]:
    """Registers of a thread, and bytes of memory that it spills to."""
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        registers, spilled = (
            max(map(int, re.findall(rf"\.{name}:\s+(\d+)", text)), default=0)
            for name in ("vgpr_count", "private_segment_fixed_size")
        )
        return registers, spilled
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:  # read by the tool that comes with Triton
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def wide_loads(compiled: Any) -> int:
    """Loads of 16 bytes."""
    if "amdgcn" in compiled.asm:
        return len(re.findall(r"(?:global|buffer|flat)_load_(?:dwordx4|b128)", compiled.asm["amdgcn"]))
    return len(re.findall(r"ld\.global\.v4", compiled.asm["ptx"]))


def variants(rows: int, vocab: int, target: GPUTarget) -> list[Any]:
    """What an engine's start compiles for this vocabulary, once it is sure that a batch of it needs nothing else."""
    backend.warp_size = lambda device: target.warp_size  # type: ignore[assignment]
    recorders = [Recorder(kernel, target) for kernel in (backend.chunk_kernel, backend.row_kernel, token_kernel)]
    for recorder in recorders:
        recorder.kernel.run = recorder
    backend.warm_up(vocab, torch.device("cpu"))
    GpuTables(torch.device("cpu"), rows).warm_up(vocab)
    warm = [list(recorder.variants) for recorder in recorders]
    backend.token_stats(torch.empty(rows, vocab), 20)
    if warm != [list(recorder.variants) for recorder in recorders]:
        raise RuntimeError("a batch needs a variant that warm_up does not compile")
    return [compiled for recorder in recorders for compiled in recorder.compiled()]


def of(name: str) -> GPUTarget:
    """The target of a name such as ``cuda:90`` or ``hip:gfx942``."""
    kind, arch = name.split(":")
    if kind == "cuda":
        return GPUTarget("cuda", int(arch), 32)
    return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels; print registers and spills.")
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="of GPUs; cuda:90 is an H100")
    targets = parser.parse_args().targets

    print(f"triton {triton.__version__}, torch {torch.__version__}")
    header = ["target", "batch", "kernel", "logits", "variant", "threads", "registers", "spilled", "programs an SM"]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    faults = []
    for name in targets:
        target = of(name)
        for rows, vocab in SIZES:
            for compiled in variants(rows, vocab, target):
                source, kernel = compiled.src, compiled.metadata.name
                registers, spilled = usage(compiled)
                threads = target.warp_size * compiled.metadata.num_warps
                cells = [
                    name,
                    f"{rows} x {vocab}",
                    kernel,
                    source.signature["logits"].strip("*"),
                    " ".join(f"{source.fn.arg_names[i]}={value}" for (i,), value in source.constants.items()),
                    threads,
                    registers,
                    spilled,
                    REGISTERS // (threads * -(-registers // 8) * 8) if target.backend == "cuda" else "",
                ]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
                if spilled:
                    faults.append(f"{name}: {kernel} spills {spilled} bytes")
                if kernel == "chunk_kernel" and not wide_loads(compiled):
                    faults.append(f"{name}: {kernel} reads less than 16 bytes at a time")
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
