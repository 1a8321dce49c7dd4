"""For every test: a fault of ours is raised instead of swallowed; and the lines of ours that were logged."""

import logging
import os
import signal
from collections.abc import Callable

import pytest

from corevital import log

os.environ["COREVITAL_RAISE"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job and all it starts would ignore it


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[logging.LogRecord]]:
    """Our records of this test, each once, as if nothing had been said and no handler set before in this process."""
    logger = logging.getLogger(log.LOGGER_NAME)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, log.LOGGER_NAME)  # importing vLLM's server raises the root's
    monkeypatch.setattr(log, "_said", set())
    return lambda: [record for record in caplog.records if record.name.startswith(log.LOGGER_NAME)]
