"""The whole demo, as a newcomer runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.harness.processes import environment

from corevital_otel.store.reader import StoreReader

pytestmark = pytest.mark.engine


def test_the_demo_shows_each_request_with_its_risk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "corevital_otel.cli", "demo", "--requests", "42"],
        cwd=tmp_path, env=environment({}), capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    match = re.fullmatch(r"demo: 42 requests, (\d+) spans, DB at runs/corevital\.db", lines[-1])
    assert match, lines[-1]
    assert StoreReader(tmp_path / "runs/corevital.db").count() == int(match[1]) > 42
    text = done.stdout
    for part in ("right", "wrong", "truncated", "loop", "AUROC", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        assert part in text, part
    shown = [line for line in lines if " show chatcmpl-" in line or " show cmpl-" in line]
    assert len(shown) == 1
    store = StoreReader(tmp_path / "runs/corevital.db")
    (*_, loud) = store.get_whole(shown[0].split(" show ")[1].split()[0], series=False)
    content = store.get_span(loud.span_id).content
    assert len(content.tokens) == loud.output_tokens == len(content.alternatives)
    assert any(" ui --db runs/corevital.db" in line for line in lines)
    (compare,) = (line.partition(" compare ")[2].split() for line in lines if " compare " in line)
    done = subprocess.run(
        [sys.executable, "-m", "corevital_otel.cli", "compare", *compare],
        cwd=tmp_path, env=environment({}), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "corevital-demo" not in running, "no server is left behind"
