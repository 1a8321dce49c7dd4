"""What an engine core knows of a sequence that a frontend has admitted, in the frontend's row."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from corevital.frames import engine_key as keys
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital.frames.remote_hub import RemoteHub
from corevital.frames.stamp import Stamp
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings
from corevital_otel.store.reader import StoreReader


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", keys.HUB, keys.HUB_KEY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(keys.VARIABLE, np.random.default_rng().bytes(32).hex())
    hub = Hub(Settings(db=tmp_path / "corevital.db"))
    hub.start()
    yield hub
    hub.close()


@pytest.fixture
def core(hub: Hub) -> Iterator[RemoteHub]:
    core = RemoteHub()
    yield core
    core.close()


def admit(hub: Hub) -> Stamp:
    request = Admitted(request_id="r", engine_id="r-e", sequence=0, operation="chat", model="tiny",
                       arrival_ns=time.time_ns(), prompt_tokens=3)  # fmt: skip
    stamp = hub.admit(request)
    assert stamp is not None
    return stamp


def finish(hub: Hub, stamp: Stamp) -> None:
    core = CoreFacts(queue_s=9.0, stop_reason="stop_string")
    hub.finish(stamp.key, Finished(reason="stop", token_ids=(), end_ns=time.time_ns(), core=core))


@pytest.mark.parametrize("late", [False, True])
def test_a_frontends_row_has_what_the_core_knows(hub: Hub, core: RemoteHub, late: bool, tmp_path: Path) -> None:
    facts = CoreFacts(queue_s=0.5, preemptions=2, data_parallel_rank=1)
    core.facts(admit(hub), facts)  # from now on this hub knows that a core sends them
    time.sleep(1.0)
    stamp = admit(hub)
    if late:
        finish(hub, stamp)
        time.sleep(0.1)
    core.facts(stamp, facts)
    if not late:
        finish(hub, stamp)
    assert hub.drain(10)
    hub.close()
    (row,) = [row for row in StoreReader(tmp_path / "corevital.db").list_reports() if row.finish_reason == "stop"]
    found = {name: row.summary.get(f"corevital.{name}") for name in ("queue_s", "preemptions", "data_parallel_rank")}
    assert found == {"queue_s": 0.5, "preemptions": 2, "data_parallel_rank": 1}
    assert row.summary["corevital.stop_reason"] == "stop_string"
