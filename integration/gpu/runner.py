"""Runs sections, each in its own process, within a budget.

Separate processes, because an error on a device stays: after one illegal access every later call of that process
fails. They are forks of one process that has imported everything and never touched a GPU, which costs a second each.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import NamedTuple

from integration.gpu.place import Place, machine
from integration.gpu.table import Report, Row

_fork = multiprocessing.get_context("fork")


class Section(NamedTuple):
    """A part of the check.

    Attributes:
        run: what it does.
        seconds: its share of the budget. What others leave unused is added to it.
    """

    run: Callable[[Place, Report], None]
    seconds: float


def has_gpu() -> bool:
    """Whether PyTorch finds a GPU. Asked in another process: one that has asked cannot fork."""
    return _answer(lambda: bool(__import__("torch").cuda.is_available())) is True


def describe(dry: bool) -> str:
    """The machine, in one line."""
    return str(_answer(lambda: machine(Place.of(dry))) or "a machine that could not be described")


def _answer(call: Callable[[], object], seconds: float = 60) -> object:
    """What a call returns in a separate process; None where it fails or takes too long."""
    ours, theirs = _fork.Pipe(duplex=False)
    process = _fork.Process(target=lambda: theirs.send(call()))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(seconds) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def run(sections: Mapping[str, Section], dry: bool, say: Callable[[str], object]) -> list[Row]:
    """Every row of these sections, in order. A section that raises, dies or takes too long has a failed row for that.

    Args:
        sections: by name.
        dry: on a CPU.
        say: takes a line as soon as there is one.
    """
    rows: list[Row] = []

    def take(row: Row) -> None:
        rows.append(row)
        say(str(row))

    deadline = time.monotonic()
    for name, section in sections.items():
        deadline += section.seconds  # of all so far: a section that needs less leaves the rest to those after it
        started = time.monotonic()
        _run_one(name, section, dry, deadline, take)
        say(f"------ {name}: {time.monotonic() - started:.1f} s")
    return rows


def _run_one(name: str, section: Section, dry: bool, deadline: float, take: Callable[[Row], None]) -> None:
    ours, theirs = _fork.Pipe(duplex=False)
    process = _fork.Process(target=_work, args=(name, section, dry, theirs), name=f"gpu-{name}")
    process.start()
    theirs.close()
    pid = process.pid
    assert pid is not None

    def fail(why: str) -> None:
        take(Row(name, "finished", why, "", "fail"))

    count, is_done = 0, False
    try:
        while not is_done and ours.poll(max(0.0, deadline - time.monotonic())):
            message = ours.recv()
            if isinstance(message, Row):
                count += 1
                take(message)
            elif message is None:
                is_done = True
                if not count:
                    fail("the section reported nothing")
            else:
                is_done = True
                fail(message)
        if not is_done:
            fail("not finished: stopped at the end of its time")
    except EOFError:
        process.join(10)
        fail(f"the process ended with {process.exitcode}")
    finally:
        process.join(5 if is_done else 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # what it has started, too
        process.kill()
        process.join()
        ours.close()


def _work(name: str, section: Section, dry: bool, pipe: Connection) -> None:
    os.setpgrp()
    try:
        section.run(Place.of(dry), Report(name, pipe.send, judges=not dry))
    except BaseException as error:
        traceback.print_exc()
        last = (str(error).strip().splitlines() or [""])[-1]
        pipe.send(f"{type(error).__name__}: {last}"[:300])
    else:
        pipe.send(None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of a section that failed hold nothing up
