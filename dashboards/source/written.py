"""Files that a command makes: written, or compared with what is there."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_or_check(made: Mapping[Path, str], present: Iterable[Path], arguments: list[str], fix: str) -> int:
    """Write the files, or with ``--check`` name those that differ.

    Args:
        made: texts by path.
        present: files that are there; one that is not made is stale.
        arguments: of the command.
        fix: the end of the line on a stale file, after its path.

    Returns:
        The number of files that differ: the exit status.
    """
    if arguments == ["--check"]:
        stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
        stale += sorted(set(present) - set(made))
        for path in stale:
            sys.stderr.write(f"{path.relative_to(Path(__file__).parents[1])} is not what {fix}\n")
        return len(stale)
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0
