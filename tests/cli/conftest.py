"""The command line as a process, and stores with the traffic of a test."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corevital_otel.cli.app import app
from corevital_otel.cli.errors import CommandError
from corevital_otel.counters import Counters
from corevital_otel.report import Features, Health, RequestReport
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Store = Callable[..., Path]
Traffic = Callable[..., list[RequestReport]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("COREVITAL_", "OTEL_", "VLLM_"))
        }
        command = [sys.executable, "-m", "corevital_otel.cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env={**clean, **env}, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@dataclasses.dataclass
class Done:
    """What a command did: exit status, standard output and errors."""

    status: int
    output: str
    error: str


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A command in this process, which saves the second that a new one takes to start."""

    def run(*arguments: str) -> Done:
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        try:
            status, error = app(list(arguments), standalone_mode=False), ""
        except CommandError as failure:
            status, error = failure.code, str(failure)
        printed = capsys.readouterr()
        return Done(status or 0, printed.out, printed.err + error)

    return run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    def write(name: str, reports: Iterable[RequestReport], resource: dict[str, str] | None = None) -> Path:
        path = tmp_path / name
        writer = StoreWriter(path, 36500, 100, Counters(), resource)
        for number, report in enumerate(reports, 1):
            writer.put(record_of(report, SpanIds(f"{number:032x}", f"{number:016x}")))
        writer.close(10)
        return path

    return write


@pytest.fixture
def traffic(report: Any) -> Traffic:
    def make(
        count: int,
        *,
        seed: int,
        prompts: int | None = None,
        shift: float = 0.0,
        noise: float = 0.0,
        loops: float = 0.0,
        first: int = 0,
        prompt_tokens: int = 20,
        **admitted: Any,
    ) -> list[RequestReport]:
        """Requests whose numbers depend on their prompt, plus ``shift``, plus ``noise`` of each request."""
        rng = np.random.default_rng(seed)
        found = []
        for i in range(count):
            prompt = first + i % (prompts or count)
            level = 1 + np.random.default_rng(prompt).gamma(2.0) + shift + noise * rng.normal()
            features = Features(
                tokens=3,
                entropy_mean=level / 4,
                entropy_max=level,
                surprisal_mean=level / 5,
                surprisal_max=level * 2,
                margin_mean=1 / level,
                margin_min=0.5 / level,
                topk_mass_mean=0.9,
                confidence_mean=9 - level,
                confidence_min=8 - level,
            )
            plain = report(
                request_id=f"r{i}",
                end_ns=time.time_ns(),
                features=features,
                health=Health(repetition_loop_detected=bool(rng.random() < loops)),
                series=None,
            )
            changed = {
                "prompt_hash": f"{prompt:032x}" if prompts else None,
                "temperature": 0.0,
                "prompt_tokens": prompt_tokens + prompt % 7,
                **admitted,
            }
            found.append(dataclasses.replace(plain, admitted=dataclasses.replace(plain.admitted, **changed)))
        return found

    return make
