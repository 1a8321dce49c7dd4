"""The line in the server's log at its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from corevital_otel import __version__, startup
from corevital_otel.otlp import destination, shown
from corevital_otel.settings import Settings

ENGINE = {"engine.name": "vllm", "engine.version": "0.32.0", "engine.runner": "v1", "device.type": "cpu"}


def test_it_says_what_is_measured_how_and_where_it_goes(tmp_path: Path) -> None:
    where = destination({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:secret@collector:4317/x?key=secret"})
    said = startup.line(Settings(db=tmp_path / "c.db", sample_rate=0.25), "tiny", ENGINE, "numba", where)
    assert said == (
        f"corevital {__version__} measures tiny: vllm 0.32.0, runner v1, kernel numba on cpu, capture on_risk, "
        f"sample rate 0.25, store {tmp_path}/c.db, spans to https://collector:4317/x by grpc"
    )
    assert startup.line(Settings(db=None), "tiny", ENGINE, "numba", None).endswith("store none, spans to no endpoint")


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://localhost:4317", "http://localhost:4317"),
        ("collector:4317", "collector:4317"),
        ("key@collector:4317", "collector:4317"),
        ("https://a:b@host/api/public/otel?token=c", "https://host/api/public/otel"),
        ("https://a:b@host/?next=http://c", "https://host/"),
        ("http://host/path@2", "http://host/path@2"),
    ],
)
def test_an_endpoint_is_shown_without_what_is_secret(endpoint: str, says: str) -> None:
    assert shown(endpoint) == says
