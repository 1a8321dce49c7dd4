"""`corevital compare` on rows of the demo model in transformers; `make bench-compare` has the rates."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration.bench.compare import MODEL, int8_copy, prompts, rows_of, serve

from corevital_otel.compare.verdict import compare

pytestmark = pytest.mark.engine


def test_int8_weights_are_found_and_the_same_weights_are_not(tmp_path: Path) -> None:
    texts = prompts(60)
    int8_copy(MODEL, tmp_path / "model")
    serve(MODEL, tmp_path / "a.db", texts, 2, tokens=12)
    serve(MODEL, tmp_path / "again.db", texts, 1, tokens=12, seed=1)
    serve(tmp_path / "model", tmp_path / "int8.db", texts, 1, tokens=12, seed=1)
    a, again, int8 = (
        [row for rows in rows_of(tmp_path / f"{name}.db").values() for row in rows] for name in ("a", "again", "int8")
    )
    found = compare(a, int8)
    assert found.verdict == "worse", found
    assert found.matched == 60
    assert found.fidelity.differ == found.fidelity.prompts == 20
    same = compare(a, again)
    assert same.verdict in ("same", "cannot say yet"), same
    assert same.fidelity.differ == 0
