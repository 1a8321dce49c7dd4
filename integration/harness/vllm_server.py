"""A real vLLM server, with the demo model unless another is named."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.harness.processes import BIN, ROOT, Group, environment, free_port

MODEL = ROOT / "otel/corevital_otel/cli/demo/model"
MODEL_NAME = "tiny"
_HUB = b"corevital_otel.service.hub_process"


class Vllm(Group):
    """A real ``vllm serve``; with the demo model unless another is named."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        env: Mapping[str, str],
        plugin: bool = True,
        model: tuple[str, Path] = (MODEL_NAME, MODEL),
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        name, path = model
        command = ["vllm", "serve", str(path), "--served-model-name", name, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--max-model-len", "2048", "--max-num-seqs", "32", "--enforce-eager"]
        command += ["--logits-processor", "corevital"] if plugin else []
        super().__init__(
            [str(BIN / command[0]), *command[1:], *arguments], environment(env), folder, folder / "vllm.log"
        )

    def ready(self) -> bool:
        """Whether it answers.

        Raises:
            RuntimeError: it has ended.
        """
        if self.process.poll() is not None:
            raise RuntimeError(f"vLLM ended with {self.process.returncode}:\n{self.text()[-4000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2):  # noqa: S310 - a URL of the test
                return True
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() > deadline:
                raise TimeoutError(self.text()[-4000:])
            time.sleep(0.5)


@contextmanager
def vllm(
    folder: Path,
    *arguments: str,
    env: Mapping[str, str],
    plugin: bool = True,
    ready_s: float = 420.0,
    model: tuple[str, Path] = (MODEL_NAME, MODEL),
) -> Iterator[Vllm]:
    server = Vllm(folder, *arguments, env=env, plugin=plugin, model=model)
    try:
        server.wait_ready(ready_s)
        yield server
    finally:
        server.stop()


def hubs(folder: Path) -> list[int]:
    """Hub processes of the server that runs in this folder; they are in no process group of it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if _HUB in (entry / "cmdline").read_bytes() and (entry / "cwd").readlink() == folder.resolve():
                found.append(int(entry.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found
