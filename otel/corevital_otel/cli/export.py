"""``corevital db export --format``: the store's rows as a table in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from corevital_otel.cli.common import duration, print_text, store_path, warn_of_damage
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.progress import Progress
from corevital_otel.store import files, tables
from corevital_otel.store.files import StoreError
from corevital_otel.store.scan import Scan


def run(db: Path | None, kind: str, target: Path, since: str | None, *, series: bool) -> None:
    """See :func:`corevital_otel.cli.app.db_export`."""
    within = None if since is None else duration(since)
    path = store_path(db)
    try:
        scan = Scan(path, within)
        with _new_file(target) as file, Progress() as progress:
            passes = 1 if kind == "jsonl" else 2
            rows = tables.write(
                scan,
                file,
                kind,
                series=series,
                progress=lambda done: progress.show(f"{done // passes} of {scan.total} requests"),
            )
    except StoreError as error:
        raise CommandError(str(error)) from None
    except ImportError:
        raise CommandError("Parquet needs pyarrow: pip install 'corevital[parquet]', or use csv or jsonl") from None
    warn_of_damage(scan)
    print_text(f"{target}: {rows} requests from {path} ({target.stat().st_size / 2**20:.1f} MiB)")


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write, for its user alone. It gets the target's name only when it is complete.

    Raises:
        CommandError: the target exists, or cannot be written.
    """
    if target.exists():
        raise CommandError(f"{target} exists: move it away, or name another file")
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        files.create(partial)
        with partial.open("r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
    except OSError as error:
        raise CommandError(
            f"{target} cannot be written ({files.why(error)}): free space, or name another file"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
