"""A keyed hash of a prompt: equal for equal prompts, and without the key it reveals nothing."""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Sequence
from typing import Final

_DIGITS: Final = 32
"""Of the hash, in hex: 128 bits."""


def prompt_hash(token_ids: Sequence[int] | None, key: str | None) -> str | None:
    """HMAC-SHA256 of the tokens; None without a key or tokens."""
    if not key or not token_ids:
        return None
    tokens = array("q", token_ids).tobytes()
    return hmac.new(key.encode(errors="surrogateescape"), tokens, hashlib.sha256).hexdigest()[:_DIGITS]
