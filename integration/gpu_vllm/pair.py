"""Two engines that live at the same time on the same device: one without the plugin and one with it."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NamedTuple

from integration.gpu_vllm.jobs import Answer, Job
from integration.gpu_vllm.models import Model
from integration.harness.runners import python_path, runner_environment
from tests.harness.processes import Group, environment

READY_S = 1800  # a first start downloads the model
JOB_S = 900
_SHARE = 0.42  # of the device's memory, for each of the two
_ERROR = re.compile(r"([\w.]*(?:Error|Exception): (?!\d+ validation).*|Value error, .*)")  # the latter: pydantic's
_CAUSED = "Engine core initialization failed"  # names no cause


class EngineError(RuntimeError):
    """An engine did not start, ended or did not answer; the text is the cause in one line."""


class Setup(NamedTuple):
    """How vLLM is run.

    Attributes:
        name: what the command line calls it.
        runner: ``v1`` or ``mrv2``.
        scheduling: for the table.
        engine: arguments of ``LLM``.
        gpus: that it needs.
        cost: whether its cost is measured; so where the scheduling is vLLM's default.
    """

    name: str
    runner: str
    scheduling: str
    engine: Mapping[str, Any]
    gpus: int = 1
    cost: bool = False


_DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
SETUPS = {
    setup.name: setup
    for setup in (
        Setup("v1-sync", "v1", "synchronous", {"async_scheduling": False}),
        Setup("v1-async", "v1", "asynchronous", {"async_scheduling": True}, cost=True),
        Setup("v2-sync", "mrv2", "synchronous", {"async_scheduling": False}),
        Setup("v2-async", "mrv2", "asynchronous", {"async_scheduling": True}, cost=True),
        Setup("v2-ngram", "mrv2", "n-gram drafts", {"speculative_config": _DRAFTS, "disable_log_stats": False}),
        Setup("v1-tp2", "v1", "two ranks", {"tensor_parallel_size": 2}, gpus=2),
        Setup("v2-tp2", "mrv2", "two ranks", {"tensor_parallel_size": 2}, gpus=2),
    )
}
"""V1 refuses drafts with any custom logits processor, so they are V2's alone."""


class Engine(Group):
    """One of them.

    Args:
        arguments: of ``LLM``.
        env: variables beside those of :func:`tests.harness.processes.environment`.
        folder: for its store.
        log: what it prints.

    Attributes:
        vocab: width of its logits, once it is ready.
    """

    vocab = 0

    def __init__(self, arguments: dict[str, Any], env: dict[str, str], folder: Path, log: Path) -> None:
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "integration.gpu_vllm.engine", str(theirs.fileno()), json.dumps(arguments)]
        super().__init__(command, environment(env), folder, log, pass_fds=(theirs.fileno(),))
        theirs.close()

    def ask(self, job: Job, timeout_s: float = JOB_S) -> Answer:
        """Do a job.

        Raises:
            EngineError: see there.
        """
        try:
            self._pipe.send(job)
        except OSError:
            raise EngineError(self._cause()) from None
        answer: Answer = self._next(timeout_s)
        return answer

    def wait_ready(self) -> None:
        """Wait until it can be asked. Raises as :meth:`ask` does."""
        self.vocab = self._next(READY_S)

    def _next(self, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        try:
            while not self._pipe.poll(0.2):
                if self.process.poll() is not None:
                    raise EngineError(self._cause())
                if time.monotonic() > deadline:
                    raise EngineError(f"no answer within {timeout_s:.0f} s")
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.wait(10)
            raise EngineError(self._cause()) from None

    def leave(self) -> None:
        """Let it finish writing, and end."""
        with suppress(OSError):  # gone already
            self._pipe.send(None)

    def stop(self, timeout_s: float = 30.0) -> None:
        """End what is still there after a minute."""
        self.wait_gone(60)
        super().stop(timeout_s)
        self._pipe.close()

    def _cause(self) -> str:
        lines = [line for line in self.text().splitlines() if " WARNING " not in line and _CAUSED not in line]
        found = _ERROR.findall("\n".join(lines))
        return found[0][:200] if found else f"the engine ended with {self.process.poll()}; see {self.log}"


class Pair(NamedTuple):
    """Both of them, running."""

    plain: Engine
    plugin: Engine
    database: Path


@contextmanager
def pair(model: Model, setup: Setup, device: str, sequences: int, folder: Path, logs: Path) -> Iterator[Pair]:
    """Start both; on a GPU one after the other, because vLLM measures the free memory there.

    Args:
        model: to serve.
        setup: likewise.
        device: ``cuda`` or ``cpu``.
        sequences: that run at once at most.
        folder: for the store.
        logs: what they print goes here, by model and setup.

    Raises:
        EngineError: one of them does not start.
    """
    env = {"HF_HUB_OFFLINE": "0", "COREVITAL_DB": str(folder / "corevital.db"), "PYTHONPATH": python_path()}
    arguments: dict[str, Any] = {
        **model.engine, **setup.engine,
        "max_model_len": 1024, "max_num_seqs": sequences, "enable_prefix_caching": False,
    }  # fmt: skip
    if device == "cuda":
        env["VLLM_USE_V2_MODEL_RUNNER"] = str(int(setup.runner == "mrv2"))
        arguments["gpu_memory_utilization"] = _SHARE
    else:
        env |= {**runner_environment(setup.runner), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        arguments["enforce_eager"] = True
    engines: list[Engine] = []
    try:
        for name, processors in {"plain": None, "plugin": ["corevital"]}.items():
            log = logs / f"{model.name.replace('/', '-')}-{setup.name}-{name}.log"
            engine = Engine({**arguments, "logits_processors": processors}, env, folder, log)
            engines.append(engine)
            if device == "cuda":
                engine.wait_ready()
        if device == "cpu":
            for engine in engines:
                engine.wait_ready()
        yield Pair(engines[0], engines[1], folder / "corevital.db")
    finally:
        for engine in engines:
            engine.leave()
        for engine in engines:
            engine.stop()
