"""`corevital calibrate` and `evaluate`: any table, any label, and one clear line on failure."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.tables import labelled, read
from corevital_otel.counters import Counters
from corevital_otel.risk.calibrated import load
from corevital_otel.spans.record import SpanIds, record_of
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


@pytest.mark.slow
def test_from_table_to_profile_to_figures(cli: Any, table: Path, tmp_path: Path) -> None:
    done = cli("calibrate", str(table), "--label", "bad", "--out", "p.json")
    assert done.returncode == 0, done.stderr
    assert "200 labelled runs" in done.stdout
    alarm = r"alarm on entropy_max, from \d+ good runs: at a rate of 0\.05 it would have been raised in \d+ of \d+ good"
    assert re.search(alarm, done.stdout)
    assert "bad = 1 (true) is bad" in done.stdout
    assert "missing columns: " in done.stdout
    assert "margin_min" in done.stdout
    assert "not used, mostly unknown or the same in many good runs: tokens" in done.stdout
    new = write(tmp_path / "new.csv", columns(seed=1))
    done = cli("evaluate", "p.json", str(new), "--label", "correct", "--group", "task", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["grouped_by"] == "task"
    assert found["bad"].startswith("correct = 0 (false) is bad, by the column's name")
    assert set(found["groups"]) == {"add", "sort"}
    assert 0.7 < found["overall"]["auroc_low"] < found["overall"]["auroc"] < found["overall"]["auroc_high"]
    assert found["overall"]["n"] == 200
    assert {"base_rate", "ece", "brier_skill", "precision", "alert_rate"} <= set(found["groups"]["add"])
    shown = cli("evaluate", "p.json", str(new), "--label", "bad", "--group", "task").stdout
    assert "within groups" in shown
    assert "the pooled AUROC does not measure the score" in shown


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["prior", "baseline"])
def test_the_bases_without_labels_are_measured_too(cli: Any, table: Path, basis: str) -> None:
    done = cli("evaluate", basis, str(table), "--label", "bad", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["overall"]["auroc"] > 0.6
    assert "surprisal_sum" in found["missing"]


def test_labels_are_read_in_every_usual_form(table: Path) -> None:
    wanted = labelled(table, "bad").bad
    assert (labelled(table, "correct").bad == wanted).all()
    assert (labelled(table, "verdict", bad="Broken").bad == wanted).all()
    assert (labelled(table, "bad", bad="0").bad == ~wanted).all()


def test_parquet_and_csv_are_the_same(table: Path, tmp_path: Path) -> None:
    (tmp_path / "runs.parquet").write_bytes(parquet_of(columns()))
    ours, theirs = labelled(tmp_path / "runs.parquet", "bad"), labelled(table, "bad")
    assert (ours.bad == theirs.bad).all()
    assert all(np.allclose(ours.runs.columns[name], theirs.runs.columns[name]) for name in theirs.runs.columns)


def test_rows_without_label_or_features_are_left_out_and_counted(tmp_path: Path) -> None:
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
        writer.put(record_of(report(request_id=f"r{i}", tokens=3 + i % 5), SpanIds(f"{i:032x}", f"{i:016x}")))
    writer.put(record_of(report(request_id="r0", sequence=1), SpanIds("f" * 32, "f" * 16)))
    writer.close(10)
    labels = write(tmp_path / "l.csv", {"request_id": [f"r{i}" for i in range(50)], "bad": [i % 2 for i in range(50)]})
    found = labelled(tmp_path / "corevital.db", "bad", labels=labels)
    assert len(found.bad) == 51, "both sequences of r0"
    assert found.left_out == {"without a label": 10}
    assert found.runs.columns["tokens"].min() == 3
    assert (found.engines(), found.stages()) == (("vllm",), ("raw",))
    one: dict[str, list[Any]] = {"request_id": ["r0"], "sequence": [1], "bad": [1]}
    only = labelled(tmp_path / "corevital.db", "bad", labels=write(tmp_path / "one.csv", one))
    assert only.table["sequence"] == [1]
    done = cli("calibrate", "corevital.db", "--label", "bad", "--out", "p.json")
    assert done.stderr.startswith("corevital: a store has no labels")
    with pytest.raises(CommandError, match=r"no request id of .*other\.csv is in"):
        labelled(
            tmp_path / "corevital.db", "bad", labels=write(tmp_path / "other.csv", {"request_id": ["x"], "bad": [1]})
        )


def test_contradicting_labels_fail_and_unmatched_ones_are_counted(table: Path, tmp_path: Path) -> None:
    given: dict[str, list[Any]] = {"request_id": ["chatcmpl-1", "chatcmpl-2", "gone"], "worse": [1, 0, 1]}
    found = labelled(table, "worse", labels=write(tmp_path / "l.csv", given))
    assert found.bad.tolist() == [True, False]
    assert found.left_out == {
        f"in {tmp_path / 'l.csv'} only: {table} has no such request": 1,
        "without a label": 198,
    }
    twice = {name: column * 2 for name, column in given.items()}
    assert labelled(table, "worse", labels=write(tmp_path / "l.csv", twice)).bad.tolist() == [True, False]
    twice["worse"][-2] = 1
    with pytest.raises(CommandError, match="has both 0 and 1 as worse of chatcmpl-2: keep one of them"):
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
    ("spoil", "expected"),
    [
        (one_kind, "all 200 labelled runs are good"),
        (too_few, "are too few: label at least 50"),
        (many_values, "has the values bad, good, ugly: name the bad one with --bad"),
        (no_label, "the table has no column 'bad': it has"),
        (no_features, "has no feature columns: it needs some such as"),
        (nan_features, "has no labelled rows: 200 without any feature"),
    ],
)
def test_bad_tables_are_one_clear_line_and_nothing_is_written(
    cli: Any, tmp_path: Path, spoil: Any, expected: str
) -> None:
    found = columns()
    spoil(found)
    write(tmp_path / "t.csv", found)
    done = cli("calibrate", "t.csv", "--label", "bad", "--out", "p.json")
    assert done.returncode == 1
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["calibrate", "none.csv", "--label", "bad", "--out", "p.json"], "none.csv cannot be read"),
        (["calibrate", "runs.csv", "--label", "bad", "--out", "no/p.json"], "there is no folder no"),
        (
            ["calibrate", "runs.csv", "--label", "bad", "--bad", "2", "--out", "p.json"],
            "--bad '2' is not a value of 'bad'",
        ),
        (["calibrate", "runs.csv", "--label", "bad", "--leave-out", "x", "--out", "p.json"], "no column 'x'"),
        (["calibrate", "runs.csv", "--label", "bad", "--out", "runs.csv"], "--out runs.csv would replace your table"),
        (["calibrate", "runs.csv", "--label", "bad", "--out", "folder"], "written to folder (Is a directory): name an"),
        (["calibrate", "latin.csv", "--label", "bad", "--out", "p.json"], "save it as CSV in UTF-8"),
        (["calibrate", "twice.csv", "--label", "bad", "--out", "p.json"], "has more than one column 'bad'"),
        (["evaluate", "none.json", "runs.csv", "--label", "bad"], "the profile none.json cannot be read"),
        (["evaluate", "runs.csv", "runs.csv", "--label", "bad"], "the profile runs.csv is not JSON"),
        (["evaluate", "prior", "runs.csv", "--label", "bad", "--group", "x"], "no column 'x'"),
        (
            ["evaluate", "prior", "runs.csv", "--label", "bad", "--group", "request_id"],
            "no group of 'request_id' has both",
        ),
        (["evaluate", "prior", "empty.csv", "--label", "bad"], "empty.csv has no rows"),
    ],
)
def test_wrong_calls_are_one_clear_line(cli: Any, table: Path, arguments: list[str], expected: str) -> None:
    (table.parent / "empty.csv").write_text("bad\n")
    (table.parent / "latin.csv").write_bytes(b"bad,gr\xfc\xdfe\n1,2\n")
    (table.parent / "twice.csv").write_text("bad,bad,entropy_mean\n1,0,2\n")
    (table.parent / "folder").mkdir()
    before = sorted(table.parent.iterdir()), table.read_text()
    done = cli(*arguments)
    assert (sorted(table.parent.iterdir()), table.read_text()) == before
    assert done.returncode == 1
    assert expected in done.stderr
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


@pytest.mark.parametrize("names", [("corevital.engine", "corevital.logits.stage"), ("engine", "stage")])
def test_a_profile_names_where_its_rows_come_from(cli: Any, tmp_path: Path, names: tuple[str, str]) -> None:
    here = {name: [value] * 200 for name, value in zip(names, ("vllm", "raw"), strict=True)}
    there = {name: [value] * 200 for name, value in zip(names, ("transformers", "post_penalty"), strict=True)}
    ours, theirs = write(tmp_path / "ours.csv", columns() | here), write(tmp_path / "theirs.csv", columns() | there)
    done = cli("calibrate", str(ours), "--label", "bad", "--out", "p.json")
    assert "fitted on vllm, stage raw\n" in done.stdout, done.stderr
    profile = load(tmp_path / "p.json")
    assert (profile.engines, profile.stages) == (("vllm",), ("raw",))
    same, other = (cli("evaluate", "p.json", str(file), "--label", "bad", "--json") for file in (ours, theirs))
    assert (same.returncode, same.stderr) == (0, "")
    assert other.returncode == 0
    (line,) = other.stderr.splitlines()
    assert "fitted on vllm, stage raw, and is used on transformers, stage post_penalty" in line
    assert json.loads(other.stdout)["overall"] == json.loads(same.stdout)["overall"]


@pytest.mark.parametrize(
    ("engine", "stage", "expected"),
    [
        (["vllm", "transformers"] * 100, ["raw"] * 200, (("transformers", "vllm"), ("raw",))),
        (["car"] * 200, ["train"] * 200, ((), ())),  # the caller's own columns
        (["vllm"] * 199 + [""], [None] * 200, ((), ())),
    ],
)
def test_origins_that_are_mixed_foreign_or_missing(
    tmp_path: Path, engine: list[Any], stage: list[Any], expected: tuple[Any, Any]
) -> None:
    found = labelled(write(tmp_path / "t.csv", columns() | {"engine": engine, "stage": stage}), "bad")
    assert (found.engines(), found.stages()) == expected


def test_calibrating_again_replaces_the_whole_profile(cli: Any, table: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("old" * 100_000)
    assert cli("calibrate", str(table), "--label", "bad", "--out", "p.json").returncode == 0
    assert load(tmp_path / "p.json").runs == 200
