"""Starting real servers for tests: free loopback ports, own process groups, nothing left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
MODEL = Path(__file__).resolve().parents[2] / "otel/corevital_otel/demo/model"
MODEL_NAME = "tiny"
ROOT = Path(__file__).resolve().parents[2]


def _runners() -> tuple[str, ...]:
    """The model runners of the vLLM installed that can run here: V2 has shown its logits to others since 0.31."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    worker = Path(spec.submodule_search_locations[0]) / "v1/worker"
    v2 = (worker / "gpu/sample/logits_processor").exists() and (worker / "cpu/model_runner.py").exists()
    return ("v1", "mrv2") if v2 else ("v1",)


RUNNERS = _runners()

OFFLINE_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "DO_NOT_TRACK": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The tests' environment without any setting that would change what is tested."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "COREVITAL_", "VLLM_"))}
    return {**kept, **OFFLINE_ENV, "PATH": f"{BIN}:{os.environ['PATH']}", **extra}


def runner_environment(runner: str) -> dict[str, str]:
    """What makes vLLM choose a model runner on a CPU, where V1 is its own choice."""
    if runner == "v1":
        return {"PYTHONPATH": str(ROOT)}
    return {
        "PYTHONPATH": f"{ROOT / 'integration/mrv2_on_cpu'}:{ROOT}",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "TORCHDYNAMO_DISABLE": "1",  # it asks the Triton driver that is none
    }


class Group:
    """A process with its own process group, and its log."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=dict(env), cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def members(self) -> dict[int, str]:
        """Processes of the group that live: pid and command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.getpgid(int(entry.name)) == self.process.pid:
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    if state != "Z":
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (ProcessLookupError, FileNotFoundError):
                continue
        return found

    def wait_gone(self, timeout_s: float) -> dict[int, str]:
        """Wait until the whole group is gone; what is left after that time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.process.poll()
            if not (left := self.members()):
                return {}
            time.sleep(0.1)
        return left

    def stop(self, timeout_s: float = 30.0) -> None:
        """SIGTERM to the group, and SIGKILL to what does not follow."""
        for number, wait in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            if not self.wait_gone(wait):
                break
        self.process.wait(10)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Vllm(Group):
    """A real ``vllm serve`` with the demo model."""

    def __init__(self, folder: Path, *arguments: str, env: Mapping[str, str], plugin: bool = True) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = ["vllm", "serve", str(MODEL), "--served-model-name", MODEL_NAME, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--max-model-len", "2048", "--max-num-seqs", "32", "--enforce-eager"]
        command += ["--logits-processor", "corevital"] if plugin else []
        super().__init__(
            [str(BIN / command[0]), *command[1:], *arguments], environment(env), folder, folder / "vllm.log"
        )

    def wait_ready(self, timeout_s: float = 240.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"vLLM ended with {self.process.returncode}:\n{self.text()[-4000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise TimeoutError(self.text()[-4000:])


@contextmanager
def vllm(folder: Path, *arguments: str, env: Mapping[str, str], plugin: bool = True) -> Iterator[Vllm]:
    server = Vllm(folder, *arguments, env=env, plugin=plugin)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()
