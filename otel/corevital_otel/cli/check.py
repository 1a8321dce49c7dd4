"""One line of ``corevital doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the output."""

    name: str
    status: Literal["ok", "warn", "fail", "none"]
    text: str
