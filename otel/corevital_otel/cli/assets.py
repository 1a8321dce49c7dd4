"""``corevital assets``: writes the dashboards, rules and configurations of the stack around a server."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from corevital_otel import __version__, asset_files
from corevital_otel.cli.common import print_text
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.terminal import print_error
from corevital_otel.store.files import why

_SUMS: Final = ".corevital-assets.sha256"
"""What was written last, as `sha256sum --check` reads it: by it a file that someone changed is known."""
_LINE: Final = re.compile(r"([0-9a-f]{64})  (\S.*)")
_MAX_SUMS: Final = 1 << 20
"""Bytes of that file that are read."""


@dataclass
class _Plan:
    """What each file of this version needs, by its path below the folder."""

    write: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Changed there, and the same in this version as in the one that was written: nothing to bring."""
    changed: list[str] = field(default_factory=list)
    """Changed there, and other in this version, or not written by this command."""


def run(out: Path, *, force: bool) -> None:
    """See :func:`corevital_otel.cli.app.assets`."""
    try:
        files = {name: path.read_bytes() for name, path in asset_files.installed().items()}
    except OSError as error:
        raise CommandError(f"this installation lacks its assets ({why(error)}): install corevital again") from None
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    try:
        former = _former(out)
        plan = _plan(out, sums, former)
        if force:
            plan.write += plan.kept + plan.changed
        elif plan.changed:
            raise CommandError(
                f"{out} has other content in {_some(plan.changed)}: nothing was written; write to another --out and "
                "compare, or overwrite with --force"
            )
        for name in plan.write:
            _replace(out / name, files[name])
        kept = {name: former[name] for name in former if name not in sums and (out / name).is_file()}
        _replace(out / _SUMS, "".join(f"{sum_}  {name}\n" for name, sum_ in (sums | kept).items()).encode())
    except OSError as error:
        raise CommandError(
            f"{out} cannot be written ({why(error)}): fix that, or name another folder with --out"
        ) from None
    if kept:
        print_error(f"corevital {__version__} no longer has {_some(sorted(kept))}: delete what you do not use")
    if plan.kept and not force:
        print_error(f"kept your changes in {_some(plan.kept)}: --force overwrites them")
    print_text(f"{out}: {len(plan.write)} files of corevital {__version__} written, {len(plan.same)} already there")


def _former(out: Path) -> dict[str, str]:
    """The checksums by path that an earlier call left, if any.

    Raises:
        OSError: the folder cannot be read, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(20, "it is a file")
    try:
        with (out / _SUMS).open(encoding="utf-8", errors="replace") as lines:
            text = lines.read(_MAX_SUMS)
    except FileNotFoundError:
        return {}
    return {found[2]: found[1] for line in text.splitlines() if (found := _LINE.fullmatch(line))}


def _plan(out: Path, sums: dict[str, str], former: dict[str, str]) -> _Plan:
    plan = _Plan()
    for name, wanted in sums.items():
        path = out / name
        if not path.exists():
            plan.write.append(name)
            continue
        present = hashlib.sha256(path.read_bytes()).hexdigest()
        if present == wanted:
            plan.same.append(name)
        elif present == former.get(name):
            plan.write.append(name)
        elif former.get(name) == wanted:
            plan.kept.append(name)
        else:
            plan.changed.append(name)
    return plan


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        if content.startswith(b"#!"):
            mode = partial.stat().st_mode
            partial.chmod(mode | (mode & 0o444) >> 2)  # who may read it may run it
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _some(names: list[str]) -> str:
    """A file's path; of several the first, and how many others."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
