"""Processes for tests: free loopback ports, a process group each, nothing left running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
OFFLINE_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "DO_NOT_TRACK": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def within(seconds: float, found: Callable[[], Any]) -> Any:
    """The first true value that ``found`` returns."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The tests' environment without any setting that would change what is tested."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "COREVITAL_", "VLLM_"))}
    return {**kept, **OFFLINE_ENV, "PATH": f"{BIN}:{os.environ['PATH']}", **extra}


class Group:
    """A process with its own process group, and its log; it inherits the files ``pass_fds``."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path, pass_fds: Sequence[int] = ()
    ) -> None:
        self.log = log
        log.write_bytes(b"")
        self._begin = lambda output: subprocess.Popen(
            command, env=dict(env), cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            pass_fds=pass_fds,
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start the command, again where it has ended: the same arguments, the same log."""
        with self.log.open("ab") as output:
            self.process = self._begin(output)

    def members(self) -> dict[int, str]:
        """Living processes of the group: pid and command line."""
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
        """SIGTERM to the group, then SIGKILL to what is left."""
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
