"""The machine itself, and the repository's tests that need a GPU or must pass beside one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from integration.gpu.place import RIGHT_INTERPRETER, Place, driver, is_interpreter_right, triton_version
from integration.gpu.table import Report

ROOT = Path(__file__).parents[2]
_COPIES = 20

INTERPRETED = "tables in Triton's interpreter"
TESTS = {
    "kernels on the GPU": ["tests/kernels/test_statistics.py", "-k", "triton-cuda"],
    "a step on the GPU": ["integration/tests/engine/test_recorder.py", "integration/tests/engine/test_frame_thread.py"],
    INTERPRETED: ["integration/tests/engine/test_gpu_tables.py"],
}
DRY_TESTS = {"a step": ["integration/tests/engine/test_recorder.py", "-k", "dtype"]}
_TIMEOUT_S = 110


def env(place: Place, report: Report) -> None:
    """What the figures were measured on."""
    if place.dry:
        report.not_run("the GPU and its memory", "no GPU")
    else:
        properties = torch.cuda.get_device_properties(place.device)
        memory = f"{properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} multiprocessors"
        report.figure("the GPU", f"{properties.name}, {memory}, driver {driver()}")
        free, total = torch.cuda.mem_get_info(place.device)
        report.check("no other process uses it", free > 0.8 * total, f"{free / total:.0%} is free", ">= 80%")
    whole = torch.empty(place.size(1 << 30, 1 << 20), dtype=torch.uint8, device=place.device)
    other = torch.empty_like(whole)
    other.copy_(whole)
    seconds = place.seconds(lambda: [other.copy_(whole) for _ in range(_COPIES)])
    report.check("a copy is right", torch.equal(whole, other))
    report.figure("memory moved by a copy", f"{2 * _COPIES * whole.nbytes / seconds / 1e9:.3g} GB/s")


def tests(place: Place, report: Report) -> None:
    """Each in its own process, in parallel and without plugins: they need only pytest and hypothesis."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    settings = f"-c {Path(__file__).with_name('pytest.ini')} --rootdir {ROOT} -p no:cacheprovider"
    environment |= {"PYTEST_ADDOPTS": settings, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    running: dict[str, subprocess.Popen[str]] = {}
    for name, arguments in place.size(TESTS, DRY_TESTS).items():
        if name == INTERPRETED and not is_interpreter_right():
            report.not_run(name, f"Triton {triton_version()} has a wrong one, it needs {RIGHT_INTERPRETER}")
            continue
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        running[name] = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + _TIMEOUT_S
    for name, process in running.items():
        try:
            output, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            report.check(name, False, f"not finished in {_TIMEOUT_S} s")
            continue
        last = (output.strip().splitlines() or ["no output"])[-1]
        is_right = process.returncode == 0 and re.search(r"\b[1-9]\d* passed", last) is not None
        if not is_right:
            print(output[-6000:], flush=True)
        report.check(name, is_right, last.strip("= "))
