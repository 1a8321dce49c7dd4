"""For every test: errors of ours are raised, not swallowed; our log records; the two parts that ``make test`` runs."""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital import log

os.environ["COREVITAL_RAISE"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, and all it starts, would ignore it

ROOT = Path(__file__).parent
NEEDS_ENGINE = ("tests/kernels", "integration")
"""Folders whose tests need torch or an engine. All others pass without."""

LONGEST = ("integration/tests/test_offline.py", "integration/tests/frontends")
"""They start first, so that two workers end at about the same time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that the Makefile uses."""
    group = parser.getgroup("corevital")
    group.addoption("--part", choices=("unit", "engine"), help="unit: tests that need no engine; engine: the others")
    group.addoption("--skip-slow", action="store_true", help="skip tests marked slow")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore the tests of the other part."""
    part = config.getoption("--part")
    with_engine = any(collection_path.is_relative_to(ROOT / folder) for folder in NEEDS_ENGINE)
    if part == "unit":
        return with_engine or None
    if part == "engine" and collection_path.is_file():
        return not with_engine or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest first; skip slow tests where asked to, so that the summary lists each of them."""
    items.sort(key=lambda item: not any(item.path.is_relative_to(ROOT / name) for name in LONGEST))
    if config.getoption("--skip-slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: `make test` runs it"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what this part leaves out."""
    if config.getoption("--part") == "unit":
        terminalreporter.line(f"not in this part: {' and '.join(NEEDS_ENGINE)}, which need torch or an engine")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[logging.LogRecord]]:
    """Our log records of this test, each once, as in a new process: nothing logged before, no handler set."""
    logger = logging.getLogger(log.LOGGER_NAME)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, log.LOGGER_NAME)  # importing vLLM's server raises the root's
    monkeypatch.setattr(log, "_logged", set())
    return lambda: [record for record in caplog.records if record.name.startswith(log.LOGGER_NAME)]
