"""What a port answers to a request without its token. A client sends the token to no other server."""

from __future__ import annotations

from typing import Final

CHALLENGE: Final = 'Bearer realm="corevital"'
"""The header ``WWW-Authenticate``."""
