"""Starting real servers for tests: free loopback ports, own process groups, nothing left behind."""

from __future__ import annotations

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


OFFLINE_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "DO_NOT_TRACK": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The tests' environment without any setting that would change what is tested."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "COREVITAL_", "VLLM_"))}
    return {**kept, **OFFLINE_ENV, "PATH": f"{BIN}:{os.environ['PATH']}", **extra}


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

    def wait_ready(self, timeout_s: float) -> None:
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
def vllm(
    folder: Path, *arguments: str, env: Mapping[str, str], plugin: bool = True, ready_s: float = 420.0
) -> Iterator[Vllm]:
    server = Vllm(folder, *arguments, env=env, plugin=plugin)
    try:
        server.wait_ready(ready_s)
        yield server
    finally:
        server.stop()
