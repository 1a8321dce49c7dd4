"""The TOML file of settings that ``COREVITAL_CONFIG`` names."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from corevital.text import printable
from corevital_otel.errors import SettingsError

VARIABLE: Final = "COREVITAL_CONFIG"
_MOST_BYTES: Final = 1 << 20
_SHOWN: Final = 80
"""Characters that are shown of its name."""


def read(env: Mapping[str, str]) -> dict[str, Any]:
    """The file's values; none where no file is named.

    Args:
        env: environment variables.

    Raises:
        SettingsError: there is a file and it cannot be read. Its content, which may be secret, is not in the text.
    """
    name = env.get(VARIABLE, "").strip()
    if not name:
        return {}
    shown = f"{VARIABLE}={printable(repr(name), _SHOWN)}"
    try:
        path = Path(name).expanduser()
        if not path.is_file():  # a pipe would be waited for
            raise OSError
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, RuntimeError, ValueError):
        raise SettingsError(f"{shown} cannot be read: name a readable TOML file, or unset it") from None
    if len(data) > _MOST_BYTES:
        raise SettingsError(f"{shown} is larger than 1 MiB: name a TOML file of settings")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise SettingsError(f"{shown} is not valid TOML: save it in UTF-8") from None
    except (ValueError, RecursionError) as error:
        place = re.search(r"at (line \d+, column \d+|end of document)\)$", str(error))
        where = f" at {place[1]}" if place else ""
        raise SettingsError(f"{shown} is not valid TOML{where}: write one `name = value` a line") from None
