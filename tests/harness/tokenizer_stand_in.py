"""A stand-in for the library ``tokenizers``, which the unit tests do not have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class StandIn:
    """A stand-in for a tokenizer.

    Args:
        word: the text of a token.
        unfinished: tokens after which a stream has no text yet.
    """

    def __init__(self, word: Callable[[int], str], unfinished: Container[int] = ()) -> None:
        self.word = word
        self.unfinished = unfinished

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join(map(self.word, ids))

    def decode_batch(self, batch: Sequence[Sequence[int]], **_: object) -> list[str]:
        return [self.decode(ids) for ids in batch]


class StandInStream:
    """A stand-in for ``DecodeStream``."""

    def __init__(self, **_: object) -> None: ...

    def step(self, tokenizer: StandIn, token: int) -> str | None:
        return None if token in tokenizer.unfinished else tokenizer.decode([token])


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, tokenizer: StandIn) -> None:
    """Have ``tokenizers`` read this tokenizer, from a folder that then has its file."""
    (folder / "tokenizer.json").touch()
    module: Any = ModuleType("tokenizers")
    module.Tokenizer = SimpleNamespace(from_file=lambda path: tokenizer)
    module.decoders = SimpleNamespace(DecodeStream=StandInStream)
    monkeypatch.setitem(sys.modules, "tokenizers", module)
    monkeypatch.setitem(sys.modules, "tokenizers.decoders", module.decoders)
