"""Untrusted tables for `calibrate` and `evaluate`: one short line, and memory within bounds."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.tables import labelled, read

Write = Callable[[Path], object]
ESCAPES = "\x1b]0;owned\x07\x9b2J\u202e"


def text(content: str, encoding: str = "utf-8") -> Write:
    return lambda path: path.write_bytes(content.encode(encoding))


def one_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"bad,entropy_mean\n")
        file.seek(1 << 30)  # a sparse file
        file.write(b"x")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def parquet(**columns: Any) -> Write:
    def write(path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet as format_

        format_.write_table(pa.table(columns), path)

    return write


def rows_bomb(path: Path) -> None:
    """A few KB that claim 30,000,000 rows."""
    import pyarrow as pa

    parquet(bad=pa.repeat(pa.scalar(1.0), 30_000_000))(path)


def truncated_parquet(path: Path) -> None:
    parquet(bad=[0, 1] * 50)(path)
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 16 + b"PAR1")


HEADER = "bad,entropy_mean\n"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (text(HEADER + "".join(f"{'x' * 100_000}{i % 3},1\n" for i in range(6))), "has the values xxx"),
        (text(HEADER + f"{ESCAPES},1\nfine,1\nother,2\n"), r"has the values \x1b]0;owned"),
        (text(f"bad{ESCAPES},entropy_mean\n1,1\n"), "has no column 'bad'"),
        (text("x" * 2_000_000), "has a line of more than 1,048,576 characters"),
        (text(HEADER + f'"{"x" * 200_000}",1\n'), "is not CSV (field larger than field limit"),
        (one_line, "has a line of more than 1,048,576 characters"),
        (text(",".join(f"c{i}" for i in range(100_000)) + "\n" + "1\n" * 50), "has 100,000 columns"),
        (text(",".join(f"c{i}" for i in range(9_000)) + "\n" + "1\n" * 3_000), "has more than 20,000,000 cells"),
        (text(HEADER + "1,1\n", "utf-16"), "is not UTF-8 text"),
        (text("bad,gr\u00fc\u00dfe\n1,2\n", "latin-1"), "is not UTF-8 text"),
        (text("\x00" * 1000), "has no rows"),
        (text("\n\n\n"), "has no rows"),
        (text(""), "has no rows"),
        (pipe, "is not a regular file"),
        (Path.mkdir, "cannot be read (Is a directory)"),
        (rows_bomb, "has more than 20,000,000 cells"),
        (truncated_parquet, "is damaged"),
        (text("PAR1"), "is damaged"),
        (parquet(bad=[[1], [0]], entropy_mean=[1.0, 2.0]), "has no column 'bad'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_hostile_table_is_one_short_line(tmp_path: Path, make: Write, expected: str) -> None:
    make(tmp_path / "t.csv")
    with pytest.raises(CommandError) as error:
        labelled(tmp_path / "t.csv", "bad")
    line = str(error.value).replace(str(tmp_path), "")
    assert expected in line
    assert len(line) < 1000


def test_ragged_rows_and_nul_bytes_are_cells(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("bad,entropy_mean,note\n1,0.5\n0,0.25,\x00,more,and more\n\n0\n")
    table = read(tmp_path / "t.csv")
    assert table["bad"] == ["1", "0", "0"]
    assert table["entropy_mean"] == ["0.5", "0.25", None]
    assert table["note"] == [None, "\x00", None]
    assert labelled(tmp_path / "t.csv", "bad").left_out == {"without any feature": 1}


def test_numbers_too_large_for_a_float_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"bad,entropy_mean,tokens\n1,{'9' * 5000},2\n0,1e999,3\n")
    found = labelled(tmp_path / "t.csv", "bad")
    assert found.runs.columns["entropy_mean"].tolist() == pytest.approx([float("nan")] * 2, nan_ok=True)


BOMB = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from pyarrow import parquet
path = Path(sys.argv[1])
{make}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from corevital_otel.cli.tables import read
table = read(path)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, len(table["bad"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["pa.array(['x' * 1_000_000] * 500)", "pa.array(['x' * 1_000_000] * 500).dictionary_encode()"]
)
def test_a_text_that_all_rows_of_a_parquet_file_share_is_unpacked_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.parquet"
    make = f"parquet.write_table(pa.table({{'bad': [0, 1] * 250, 'text': {kind}}}), path, compression='zstd')"
    subprocess.run([sys.executable, "-c", BOMB.partition("before =")[0].format(make=make), str(path)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", BOMB.format(make=""), str(path)], capture_output=True, text=True, check=True
    )
    taken, rows = map(int, done.stdout.split())
    assert rows == 500
    assert taken < 250, "MiB; of 500 if each row had its own"


def test_a_million_cells_are_read_in_reasonable_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "t.csv").write_text(
        "bad," + ",".join(f"c{i}" for i in range(19)) + "\n" + "1,0.5" * 1 + ",1" * 18 + "\n"
    )
    with (tmp_path / "t.csv").open("a") as file:
        file.writelines("0" + ",0.25" * 19 + "\n" for _ in range(50_000))
    assert len(read(tmp_path / "t.csv")["c18"]) == 50_001
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < 400
