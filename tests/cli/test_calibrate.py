"""`corevital calibrate` and `evaluate`: any table, any label, and one clear line where it does not go."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corevital_otel.cli import CommandError
from corevital_otel.cli.tables import labelled, read
from corevital_otel.counters import Counters
from corevital_otel.risk.profile import load
from corevital_otel.spans import SpanIds
from corevital_otel.store.writer import StoreWriter


def columns(n: int = 200, seed: int = 0) -> dict[str, list[Any]]:
    rng = np.random.default_rng(seed)
    bad = rng.random(n) < 0.4
    level = np.exp(rng.normal(0, 0.4, n) + 0.7 * bad)
    return {
        "request_id": [f"chatcmpl-{i}" for i in range(n)],
        "task": [("add", "sort")[i % 2] for i in range(n)],
        "tokens": [50] * n,
        "corevital.entropy.mean": (0.5 * level).tolist(),
        "entropy_max": (5 * level * np.exp(rng.normal(0, 0.2, n))).tolist(),
        "bad": [int(value) for value in bad],
        "correct": [str(not value) for value in bad],
        "verdict": [("fine", "broken")[int(value)] for value in bad],
    }


def write(path: Path, table: dict[str, list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


def parquet_of(table: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(table), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "runs.csv", columns())


def test_from_table_to_profile_to_figures(cli: Any, table: Path, tmp_path: Path) -> None:
    done = cli("calibrate", str(table), "--label", "bad", "--out", "p.json")
    assert done.returncode == 0, done.stderr
    assert "200 labelled runs" in done.stdout
    assert "bad = 1 (true) is bad" in done.stdout
    assert "no column of: " in done.stdout
    assert "margin_min" in done.stdout
    assert "not used, mostly unknown or always the same: tokens" in done.stdout
    new = write(tmp_path / "new.csv", columns(seed=1))
    done = cli("evaluate", "p.json", str(new), "--label", "correct", "--group", "task", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["grouped_by"] == "task"
    assert found["bad"].startswith("correct = 0 (false) is bad, by its name")
    assert set(found["groups"]) == {"add", "sort"}
    assert 0.7 < found["overall"]["auroc_low"] < found["overall"]["auroc"] < found["overall"]["auroc_high"]
    assert found["overall"]["n"] == 200
    assert {"base_rate", "ece", "brier_skill", "precision", "alert_rate"} <= set(found["groups"]["add"])
    shown = cli("evaluate", "p.json", str(new), "--label", "bad", "--group", "task").stdout
    assert "within groups" in shown
    assert "it is no measure of the score" in shown


@pytest.mark.parametrize("basis", ["prior", "baseline"])
def test_the_bases_without_labels_are_measured_too(cli: Any, table: Path, basis: str) -> None:
    done = cli("evaluate", basis, str(table), "--label", "bad", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["overall"]["auroc"] > 0.6
    assert "confidence_min" in found["missing"]


def test_the_label_is_read_in_every_way_that_people_write_it(table: Path) -> None:
    wanted = labelled(table, "bad").bad
    assert (labelled(table, "correct").bad == wanted).all()
    assert (labelled(table, "verdict", bad="Broken").bad == wanted).all()
    assert (labelled(table, "bad", bad="0").bad == ~wanted).all()


def test_parquet_and_csv_are_the_same(table: Path, tmp_path: Path) -> None:
    (tmp_path / "runs.parquet").write_bytes(parquet_of(columns()))
    ours, theirs = labelled(tmp_path / "runs.parquet", "bad"), labelled(table, "bad")
    assert (ours.bad == theirs.bad).all()
    assert all(np.allclose(ours.runs.columns[name], theirs.runs.columns[name]) for name in theirs.runs.columns)


def test_rows_without_label_or_features_are_left_out_and_said(tmp_path: Path) -> None:
    found = columns(60)
    found["cut"] = [i < 5 for i in range(60)]
    found["bad"][10] = ""
    for name in ("tokens", "corevital.entropy.mean", "entropy_max"):
        found[name][11] = "nan"
    result = labelled(write(tmp_path / "t.csv", found), "bad", leave_out=["cut"])
    assert result.left_out == {"`cut` is true": 5, "without a label": 1, "without any feature": 1}
    assert len(result.runs) == len(result.bad) == 53


def test_a_store_is_joined_with_its_labels(cli: Any, tmp_path: Path, report: Any) -> None:
    writer = StoreWriter(tmp_path / "corevital.db", 36500, 100, Counters())
    for i in range(60):
        writer.put(report(request_id=f"r{i}", tokens=3 + i % 5), SpanIds(f"{i:032x}", f"{i:016x}"))
    writer.put(report(request_id="r0", sequence=1), SpanIds("f" * 32, "f" * 16))
    writer.close(10)
    labels = write(tmp_path / "l.csv", {"request_id": [f"r{i}" for i in range(50)], "bad": [i % 2 for i in range(50)]})
    found = labelled(tmp_path / "corevital.db", "bad", labels=labels)
    assert len(found.bad) == 51, "both sequences of r0"
    assert found.left_out == {"without a label": 10}
    assert found.runs.columns["tokens"].min() == 3
    one = {"request_id": ["r0"], "sequence": [1], "bad": [1]}
    only = labelled(tmp_path / "corevital.db", "bad", labels=write(tmp_path / "one.csv", one))
    assert only.table["sequence"] == [1]
    done = cli("calibrate", "corevital.db", "--label", "bad", "--out", "p.json")
    assert done.stderr.startswith("corevital: a store has no labels")
    with pytest.raises(CommandError, match=r"no request id of .*other\.csv is in"):
        labelled(
            tmp_path / "corevital.db", "bad", labels=write(tmp_path / "other.csv", {"request_id": ["x"], "bad": [1]})
        )


def test_labels_that_contradict_each_other_or_fit_nothing_are_said(table: Path, tmp_path: Path) -> None:
    given = {"request_id": ["chatcmpl-1", "chatcmpl-2", "gone"], "worse": [1, 0, 1]}
    found = labelled(table, "worse", labels=write(tmp_path / "l.csv", given))
    assert found.bad.tolist() == [True, False]
    assert found.left_out == {
        f"of {tmp_path / 'l.csv'}: their requests are not in {table}": 1,
        "without a label": 198,
    }
    twice = {name: column * 2 for name, column in given.items()}
    assert labelled(table, "worse", labels=write(tmp_path / "l.csv", twice)).bad.tolist() == [True, False]
    twice["worse"][-2] = 1
    with pytest.raises(CommandError, match="has both 0 and 1 as worse of chatcmpl-2: leave one of them"):
        labelled(table, "worse", labels=write(tmp_path / "l.csv", twice))


def one_kind(found: dict[str, list[Any]]) -> None:
    found["bad"] = [0] * len(found["bad"])


def too_few(found: dict[str, list[Any]]) -> None:
    for column in found.values():
        del column[30:]


def many_values(found: dict[str, list[Any]]) -> None:
    found["bad"] = ["good", "bad", "ugly"] * 66 + ["bad", "bad"]


def no_label(found: dict[str, list[Any]]) -> None:
    del found["bad"]


def no_features(found: dict[str, list[Any]]) -> None:
    for name in ("tokens", "corevital.entropy.mean", "entropy_max"):
        del found[name]


def nan_features(found: dict[str, list[Any]]) -> None:
    for name in ("tokens", "corevital.entropy.mean", "entropy_max"):
        found[name] = ["nan"] * len(found[name])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (one_kind, "all 200 labelled runs are good"),
        (too_few, "are too few: label at least 50"),
        (many_values, "has the values bad, good, ugly: say which is bad with --bad"),
        (no_label, "the table has no column 'bad': it has"),
        (no_features, "has no feature columns: it needs some such as"),
        (nan_features, "has no labelled rows: 200 without any feature"),
    ],
)
def test_bad_tables_are_one_clear_line_and_nothing_is_written(cli: Any, tmp_path: Path, spoil: Any, said: str) -> None:
    found = columns()
    spoil(found)
    write(tmp_path / "t.csv", found)
    done = cli("calibrate", "t.csv", "--label", "bad", "--out", "p.json")
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["calibrate", "none.csv", "--label", "bad", "--out", "p.json"], "none.csv cannot be read"),
        (["calibrate", "runs.csv", "--label", "bad", "--out", "no/p.json"], "there is no folder no"),
        (
            ["calibrate", "runs.csv", "--label", "bad", "--bad", "2", "--out", "p.json"],
            "--bad '2' is no value of 'bad'",
        ),
        (["calibrate", "runs.csv", "--label", "bad", "--leave-out", "x", "--out", "p.json"], "no column 'x'"),
        (["calibrate", "runs.csv", "--label", "bad", "--out", "runs.csv"], "--out runs.csv would replace your table"),
        (["calibrate", "runs.csv", "--label", "bad", "--out", "folder"], "written to folder (Is a directory): name an"),
        (["calibrate", "latin.csv", "--label", "bad", "--out", "p.json"], "save it as CSV in UTF-8"),
        (["calibrate", "twice.csv", "--label", "bad", "--out", "p.json"], "has more than one column 'bad'"),
        (["evaluate", "none.json", "runs.csv", "--label", "bad"], "the profile none.json cannot be read"),
        (["evaluate", "runs.csv", "runs.csv", "--label", "bad"], "the profile runs.csv is no JSON"),
        (["evaluate", "prior", "runs.csv", "--label", "bad", "--group", "x"], "no column 'x'"),
        (
            ["evaluate", "prior", "runs.csv", "--label", "bad", "--group", "request_id"],
            "no group of 'request_id' has both",
        ),
        (["evaluate", "prior", "empty.csv", "--label", "bad"], "empty.csv has no rows"),
    ],
)
def test_wrong_calls_are_one_clear_line(cli: Any, table: Path, arguments: list[str], said: str) -> None:
    (table.parent / "empty.csv").write_text("bad\n")
    (table.parent / "latin.csv").write_bytes(b"bad,gr\xfc\xdfe\n1,2\n")
    (table.parent / "twice.csv").write_text("bad,bad,entropy_mean\n1,0,2\n")
    (table.parent / "folder").mkdir()
    before = sorted(table.parent.iterdir()), table.read_text()
    done = cli(*arguments)
    assert (sorted(table.parent.iterdir()), table.read_text()) == before
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_parquet_and_a_foreign_database(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CommandError, match="is damaged"):
        read(tmp_path / "t.parquet")
    (tmp_path / "none.parquet").write_bytes(parquet_of({name: [] for name in columns()}))
    with pytest.raises(CommandError, match="has no rows"):
        read(tmp_path / "none.parquet")
    with sqlite3.connect(tmp_path / "t.db") as connection:
        connection.execute("CREATE TABLE x (y)")
    with pytest.raises(CommandError):
        read(tmp_path / "t.db")


def test_calibrating_anew_replaces_the_profile_wholly(cli: Any, table: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("old" * 100_000)
    assert cli("calibrate", str(table), "--label", "bad", "--out", "p.json").returncode == 0
    assert load(tmp_path / "p.json").runs == 200
