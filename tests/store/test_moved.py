"""A store that is removed, replaced or emptied while it is in use: what comes afterwards is found at its path."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import record_of
from corevital_otel.store import statements
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, wait_for

Make = Callable[..., RequestReport]
DROPPED = "corevital.telemetry.dropped"


def unlink_all(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def remove_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_away(path: Path) -> None:
    path.rename(path.with_suffix(".old"))


def replace(path: Path) -> None:
    other = StoreWriter(path.with_suffix(".new"), 36500, 1024, Counters())
    other.close(10)
    path.with_suffix(".new").touch()
    path.with_suffix(".new").rename(path)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def remove_the_log(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


def remove_the_index_of_the_log(path: Path) -> None:
    path.with_name(path.name + "-shm").unlink()


@pytest.mark.parametrize(
    "harm",
    [unlink_all, remove_the_folder, move_away, replace, empty, remove_the_log, remove_the_index_of_the_log],
    ids=lambda harm: harm.__name__,
)
def test_later_rows_are_found_at_the_path_and_there_is_one_warning(
    tmp_path: Path, report: Make, warnings: Callable[[], list[str]], harm: Callable[[Path], None]
) -> None:
    path, counters = tmp_path / "runs/c.db", Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    writer.put(record_of(report(request_id="before"), ids(0)))
    wait_for(lambda: writer.waiting == 0)
    harm(path)
    for number in range(1, 4):
        writer.put(record_of(report(request_id=f"after-{number}"), ids(number)))
        wait_for(lambda: writer.waiting == 0)
    assert {f"after-{number}" for number in range(1, 4)} <= {row.request_id for row in StoreReader(path).list_reports()}
    writer.close(10)
    assert {f"after-{number}" for number in range(1, 4)} <= {row.request_id for row in StoreReader(path).list_reports()}
    assert counters.get(DROPPED) == 0
    (line,) = warnings()
    assert f"the store {path} was" in line
    assert "stop the servers before you move or remove a store" in line


def test_a_batch_that_is_committed_into_a_file_just_removed_is_written_again(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, counters = tmp_path / "c.db", Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    writer.put(record_of(report(), ids(0)))
    wait_for(lambda: writer.waiting == 0)
    insert = statements.insert

    def removed_meanwhile(*arguments: object) -> object:
        done = insert(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(statements, "insert", insert)
        unlink_all(path)
        return done

    monkeypatch.setattr(statements, "insert", removed_meanwhile)
    for number in range(1, 50):
        writer.put(record_of(report(), ids(number)))
    writer.close(10)
    assert StoreReader(path).count() == 49
    assert counters.get(DROPPED) == 0


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a pipe"), (os.mkdir, "a directory")])
def test_a_path_that_is_not_a_file_is_refused_at_once_and_not_changed(
    tmp_path: Path,
    report: Make,
    warnings: Callable[[], list[str]],
    make: Callable[[Path], None],
    kind: str,
) -> None:
    path, counters = tmp_path / "c.db", Counters()
    make(path)
    writer = StoreWriter(path, 36500, 1024, counters)
    writer.put(record_of(report(), ids(0)))
    wait_for(lambda: bool(warnings()))
    writer.close(5)
    assert f"it is {kind}, not a file): move it away" in warnings()[0]
    assert counters.get(DROPPED, what="report", why="store_unwritable") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.db"]


def test_a_path_may_be_a_link_and_the_folder_may_change(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    for folder in ("real", "one", "other"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    for name in ("file:c.db?mode=memory", "link.db"):
        Path("link.db").unlink(missing_ok=True)
        Path("link.db").symlink_to("../real/c.db")
        writer = StoreWriter(Path(name), 36500, 1024, Counters())
        writer.put(record_of(report(), ids(0)))
        wait_for(lambda writer=writer: writer.waiting == 0)
        os.chdir(tmp_path / "other")
        writer.put(record_of(report(), ids(1)))
        writer.close(10)
        os.chdir(tmp_path / "one")
        assert StoreReader(Path(name)).count() == 2
    assert stat.S_IMODE((tmp_path / "real/c.db").stat().st_mode) == 0o600
    assert not list((tmp_path / "other").iterdir())
    assert warnings() == []


def test_a_new_store_is_its_users_alone_and_an_old_one_keeps_its_mode(tmp_path: Path, report: Make) -> None:
    def modes(path: Path) -> set[int]:
        writer = StoreWriter(path, 36500, 1024, Counters())
        writer.put(record_of(report(), ids(0)))
        wait_for(lambda: writer.waiting == 0 and path.with_name(path.name + "-wal").exists())
        found = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        writer.close(10)
        return found

    for mask in (0o000, 0o022, 0o777):
        folder = tmp_path / f"{mask:o}"
        folder.mkdir()
        before = os.umask(mask)
        try:
            assert modes(folder / "c.db") == {0o600}
        finally:
            os.umask(before)
    (tmp_path / "0/c.db").chmod(0o640)
    assert modes(tmp_path / "0/c.db") == {0o640}
