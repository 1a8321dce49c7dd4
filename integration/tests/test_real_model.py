"""A slice of `make bench-real`: some of its questions, asked of SmolLM2 on real vLLM with the plugin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from integration.bench.real import methods
from integration.bench.real.__main__ import collect
from integration.bench.real.ask import Job, answers, jobs
from integration.bench.real.model import PACKAGES
from integration.bench.real.rows import Rows, client_id, read

from corevital_otel.calibration.fitting import fit
from corevital_otel.risk.directions import DIRECTIONS
from corevital_otel.store.reader import StoredReport, StoreReader

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PACKAGES.is_dir(), reason="SmolLM2 is not here: `make test` installs it"),
]

SHORT = 60
LONG = 8
FLAGS = Path("/proc/cpuinfo").read_text()


def some() -> list[Job]:
    """The first questions, and the beginnings of long answers."""
    short = [job for job in jobs() if job.form != "long"][:SHORT]
    return short + [replace(job, max_tokens=192) for job in jobs() if job.form == "long"][:LONG]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("real")
    # what the benchmark uses is many times slower on a processor without instructions for it
    dtype = "bfloat16" if "avx512_bf16" in FLAGS else "float32"
    assert collect(where, dtype, asked=some(), threads=1) == 0
    return where


@pytest.fixture(scope="module")
def rows(folder: Path) -> Rows:
    return read(folder)


@pytest.fixture(scope="module")
def stored(folder: Path) -> list[StoredReport]:
    return StoreReader(folder / "corevital.db").list_reports(limit=10_000)


def test_each_answer_is_one_row_and_every_token_was_measured(folder: Path, stored: list[StoredReport]) -> None:
    asked = [one["id"] for one in answers(folder / "answers.jsonl").values()]
    assert len(asked) == SHORT + LONG
    assert sorted(client_id(row.request_id) for row in stored) == sorted(asked)
    for row in stored:
        assert "corevital.incomplete" not in row.summary
        assert row.summary["corevital.tokens.observed"] == row.output_tokens
        assert "nan_detected" not in row.flags


def test_what_the_server_said_of_an_answer_is_what_the_benchmark_computes(
    folder: Path, rows: Rows, stored: list[StoredReport]
) -> None:
    """The tables of `make bench-real` are of scores that are computed again from the stored features."""
    served = {client_id(row.request_id): row.risk_score for row in stored}
    wanted = [served[name] for name in rows["id"]]
    np.testing.assert_allclose(methods.prior(rows), wanted, atol=1e-3)


def test_an_ordinary_answer_is_neither_salad_nor_high_for_its_length(rows: Rows) -> None:
    """The whole benchmark measures shares. In a slice with few long answers, one of them may be an exception."""
    ordinary = rows.where(lambda some: (some["form"] == "long") & (some["temperature"] < 1.0))
    assert (methods.prior(ordinary) >= methods.THRESHOLD).sum() <= max(0.1 * len(ordinary), 1)
    assert not [names for names in ordinary["flags"] if "sustained_high_entropy" in names.split()]


def test_no_weight_points_the_wrong_way(rows: Rows) -> None:
    short = rows.where(lambda some: some["form"] != "long")
    assert 0 < short["wrong"].sum() < len(short)
    profile = fit(short.runs, short["wrong"])
    assert all(term.coefficient * DIRECTIONS.get(term.name, 0) >= 0 for term in profile.terms)
