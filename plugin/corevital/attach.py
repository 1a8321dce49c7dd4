"""Engines that load plugins unasked: ``COREVITAL_ATTACH`` names those that are to be measured.

Read from the environment only: the engine's processes inherit it, and read no settings file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "COREVITAL_ATTACH"
ENGINES: Final = ("sglang", "tgi")
"""What it may name, separated by commas."""

_SHOWN: Final = 64
"""Characters that are shown of an unknown name."""


def named(env: Mapping[str, str] = os.environ) -> set[str]:
    """The names in the variable, in lower case, known or not."""
    return {name.strip().lower() for name in env.get(VARIABLE, "").split(",") if name.strip()}


def wanted(engine: str, env: Mapping[str, str] = os.environ) -> bool:
    """Whether ``engine``, one of :data:`ENGINES`, is to be measured. Never raises.

    An unknown name in the variable measures nothing; it is logged once, by the process that starts the others.
    """
    names = named(env)
    if unknown := sorted(names.difference(ENGINES)):
        _warn(unknown[0])
    return engine in names


def withdraw(engine: str) -> None:
    """Let the processes that this one starts not measure ``engine``: this one has logged why it cannot be."""
    names = (name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    os.environ[VARIABLE] = ",".join(name for name in names if name.lower() != engine)


def _warn(name: str) -> None:
    from multiprocessing import parent_process

    if parent_process() is not None:
        return
    from corevital.log import configure, warn_once
    from corevital.text import printable

    configure()
    close = difflib.get_close_matches(name, ENGINES, 1) or ENGINES
    warn_once(
        VARIABLE,
        "%s: unknown engine %s, ignored: use %s; only engines that it names are measured",
        VARIABLE,
        printable(repr(name), _SHOWN),
        " or ".join(close),
    )
