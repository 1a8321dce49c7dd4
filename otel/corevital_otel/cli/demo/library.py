"""The demo without a server: transformers answers in a separate process, under a monitor."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final

from corevital_otel.cli.demo import MODEL_DIR
from corevital_otel.cli.demo.server import MODEL_NAME, ServerError
from corevital_otel.cli.demo.tasks import Task
from corevital_otel.cli.demo.traffic import Exchange, shape, tasks_of

_ANSWERS: Final = "corevital.engines.transformers.answering"
_ENVIRONMENT: Final = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
"""One thread is the fastest for a model this small."""
_BATCH: Final = 16
_LINE: Final = 300
"""Characters of the log's last line in an error."""


def generate(
    count: int, log: Path, settings: Mapping[str, str], progress: Callable[[int], None], seed: int = 1
) -> list[Exchange]:
    """Answer ``count`` prompts, some in one call of ``generate()``. Returns every answer.

    Args:
        count: of prompts.
        log: file that the process's messages go to.
        settings: ``COREVITAL_*`` variables for it.
        progress: called with the number of prompts just answered.
        seed: of the tasks.

    Raises:
        ServerError: transformers is not installed, or the process ended early.
    """
    for name in ("transformers", "torch"):
        if importlib.util.find_spec(name) is None:
            raise ServerError(f"{name} is not installed: pip install transformers torch")
    log.parent.mkdir(parents=True, exist_ok=True)
    found: list[Exchange] = []
    with (
        log.open("wb") as messages,
        subprocess.Popen(  # noqa: S603 - a list of ours, without a shell
            [sys.executable, "-m", _ANSWERS, str(MODEL_DIR), MODEL_NAME],
            env={**os.environ, **_ENVIRONMENT, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
        ) as process,
    ):
        try:
            for options, tasks in _batches(tasks_of(count, seed)):
                answers = _ask(process, {**options, "prompts": [task.prompt + "\n" for task in tasks]})
                each = [task for task in tasks for _ in range(options["n"])]
                found += [Exchange(task, **answer) for task, answer in zip(each, answers, strict=True)]
                progress(len(tasks))
            process.communicate()
        except (OSError, ValueError):  # it has ended, and closed its pipes
            raise ServerError(
                f"transformers ended early; its last line: {_last_line(log)} (whole log: {log})"
            ) from None
        finally:
            process.kill()  # after an interruption
            with suppress(OSError):
                _pipes(process)[0].close()
    return found


def _ask(process: subprocess.Popen[str], batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    asked, answered = _pipes(process)
    asked.write(f"{json.dumps(batch)}\n")
    asked.flush()
    return list(json.loads(answered.readline()))


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process has no pipes")
    return process.stdin, process.stdout


def _batches(tasks: list[Task]) -> Iterator[tuple[dict[str, Any], list[Task]]]:
    """Tasks that can share a call of ``generate()``, and its options."""

    def order(numbered: tuple[int, Task]) -> list[float]:
        return list(shape(*numbered).values())

    for _, group in groupby(sorted(enumerate(tasks), key=order), key=order):
        same = list(group)
        options = shape(*same[0])
        for at in range(0, len(same), _BATCH):
            yield options, [task for _, task in same[at : at + _BATCH]]


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return (lines or ["none"])[-1][:_LINE]
