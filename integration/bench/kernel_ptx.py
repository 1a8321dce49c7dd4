"""Compile the Triton kernels for a GPU that need not be there; print the registers that a thread takes, and spills.

    python -m integration.bench.kernel_ptx [--capability 90]

Exit 1 if a variant that :func:`corevital.kernels.warm_up` compiles spills registers to memory. The last columns:
threads of a program; registers of a thread; bytes that a thread spills; bytes of shared memory; programs that the
registers of an SM hold at once.
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

from corevital.kernels import triton as backend

SIZES = [(32, 128256), (256, 151936)]
REGISTERS = 1 << 16  # of an SM, from Volta to Blackwell


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


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of memory of the kernel in a cubin, from the tool that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def variants(rows: int, vocab: int, target: GPUTarget) -> list[Any]:
    """What ``warm_up`` compiles for this vocabulary, once it is sure that a batch of it needs nothing else."""
    recorders = [Recorder(kernel, target) for kernel in (backend.chunk_kernel, backend.row_kernel)]
    for recorder in recorders:
        recorder.kernel.run = recorder
    backend.warm_up(vocab, torch.device("cpu"))
    warm = [list(recorder.variants) for recorder in recorders]
    backend.token_stats(torch.empty(rows, vocab), 20)
    if warm != [list(recorder.variants) for recorder in recorders]:
        raise RuntimeError("a batch needs a variant that warm_up does not compile")
    return [compiled for recorder in recorders for compiled in recorder.compiled()]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels; print registers and spills.")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU; 90 is an H100")
    target = GPUTarget("cuda", parser.parse_args().capability, 32)

    print(f"sm_{target.arch}, triton {triton.__version__}, torch {torch.__version__}")
    header = ["batch", "kernel", "logits", "variant", "threads", "registers", "spilled", "shared", "programs an SM"]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    spilled = 0
    for rows, vocab in SIZES:
        for compiled in variants(rows, vocab, target):
            source = compiled.src
            used = usage(compiled.asm["cubin"])
            threads = 32 * compiled.metadata.num_warps
            cells = [
                f"{rows} x {vocab}",
                compiled.metadata.name,
                source.signature["logits"].strip("*"),
                " ".join(f"{source.fn.arg_names[i]}={value}" for (i,), value in source.constants.items()),
                threads,
                used["REG"],
                used["STACK"] + used["LOCAL"],
                used["SHARED"],
                REGISTERS // (threads * -(-used["REG"] // 8) * 8),  # registers are given to threads by eights
            ]
            spilled += used["STACK"] + used["LOCAL"]
            print(f"| {' | '.join(map(str, cells))} |")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
