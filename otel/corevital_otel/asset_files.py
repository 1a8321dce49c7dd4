"""The files of ``corevital assets``: which of the repository they are, and where a wheel has them.

``hatch_build.py`` runs this file while it builds the wheel: it imports the standard library only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["PACKAGED", "in_repository", "installed"]

PACKAGED: Final = "assets"
"""The folder of this package that a wheel has them in."""
_FOLDER: Final = "dashboards"
_BESIDE: Final = ("docker-compose.otel.yml", ".env.example")
_LEFT_OUT: Final = frozenset({"schema", "secrets", "__pycache__"})
"""Folders: what only the tests read, what `make_secrets.sh` and operators put there, and bytecode."""


def in_repository(root: Path) -> dict[str, Path]:
    """The files below the top of a checkout, of an unpacked source archive, or of a wheel's copy of them.

    Returns:
        Each file by its path below ``root``, with slashes, in order.

    Raises:
        FileNotFoundError: the folder lacks them.
    """
    found = [path for path in (root / _FOLDER).rglob("*") if path.is_file()]
    kept = [path for path in found if _LEFT_OUT.isdisjoint(path.relative_to(root).parts)]
    missing = [name for name in (f"{_FOLDER}/config.toml", *_BESIDE) if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{root} has no {missing[0]}")
    return {path.relative_to(root).as_posix(): path for path in sorted([*kept, *(root / name for name in _BESIDE)])}


def installed() -> dict[str, Path]:
    """The files of this installation: a wheel's, or those of the checkout that it was installed from.

    Raises:
        FileNotFoundError: it has none.
    """
    package = Path(__file__).parent
    packaged = package / PACKAGED
    return in_repository(packaged if packaged.is_dir() else package.parents[1])
