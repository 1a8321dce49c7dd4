"""A model's tokenizer, by which tokens become text in the telemetry half.

The library ``tokenizers`` comes with the engines and is not a dependency of ours. A tokenizer's files are read where
they are; nothing is downloaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from corevital.log import warn_once
from corevital.text import printable

_CLOCK_EVERY: Final = 128
"""Tokens between two looks at the clock."""
_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
"""A text ends with it while bytes of a character are missing."""
_OTHER_BYTES: Final = "Invalid prefix encountered"
"""Begin of the message of ``tokenizers`` where a token changes the text before it."""


def read_tokenizer(name: str, revision: str | None, download_dir: str | None = None, *, without: str) -> Any:
    """A ``tokenizers.Tokenizer``; None where there is none, which is logged.

    Args:
        name: a folder with ``tokenizer.json``, or a name in the local Hugging Face cache.
        revision: of the name; None: ``main``.
        download_dir: the cache's folder, where it is not the usual one.
        without: the consequence of having none, for the log.
    """

    def missing(why: str) -> None:
        shown = printable(name, 120)
        warn_once(f"tokenizer:{name}:{without}", "cannot decode tokens of %s: %s. %s", shown, why, without)

    try:
        from tokenizers import Tokenizer
    except ImportError:
        return missing("the package tokenizers is not installed")
    path = _find(name, revision, download_dir)
    if path is None:
        return missing("it has no tokenizer.json on this host")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain exceptions
        return missing(f"its tokenizer.json cannot be read ({printable(error, 120)})")


def pieces(
    tokenizer: Any,
    token_ids: Sequence[int],
    *,
    before: Sequence[int] = (),
    skip_special_tokens: bool = False,
    within_s: float,
) -> Iterator[str]:
    """The text that each token adds; "" where a character is not complete yet.

    ``DecodeStream`` is what frontends use, primed with the prompt in the same way.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
        token_ids: of the output.
        before: tokens before those, which may change how the first ones are written.
        skip_special_tokens: special tokens have no text.
        within_s: time for all; beyond it there are no more pieces.
    """
    from tokenizers.decoders import DecodeStream

    primed = [int(token) for token in before if token >= 0]
    if tokenizer.decode(primed, skip_special_tokens=skip_special_tokens).endswith(_INCOMPLETE):
        primed = []  # the stream would give their text out again
    stream = DecodeStream(ids=primed, skip_special_tokens=skip_special_tokens)
    deadline = time.monotonic() + within_s
    for number, token in enumerate(token_ids, 1):
        try:
            piece = stream.step(tokenizer, int(token))
        except (OverflowError, TypeError):  # not a token
            piece = None
        except Exception as error:  # start again, as frontends do
            if not str(error).startswith(_OTHER_BYTES):
                raise
            stream = DecodeStream(skip_special_tokens=skip_special_tokens)
            piece = stream.step(tokenizer, int(token))
        yield piece or ""
        if number % _CLOCK_EVERY == 0 and time.monotonic() > deadline:
            return


def _find(name: str, revision: str | None, download_dir: str | None) -> Path | None:
    """The file ``tokenizer.json`` of a tokenizer on this host, if there is one."""
    if Path(name).is_dir():
        path = Path(name) / "tokenizer.json"
        return path if path.is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "tokenizer.json", cache_dir=download_dir, revision=revision)
    except Exception:  # not installed, or no valid name
        return None
    return Path(found) if isinstance(found, str) else None
