"""A sequence whose alarm is raised: the hub orders its engine core to end it, its own or a frontend's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.service.test_cores import _own_key, core, ended, request  # noqa: F401

from corevital.frames import events
from corevital.frames.engine_key import engine_key
from corevital.frames.layout import ROW, SAMPLED, Source
from corevital.frames.remote_hub import RemoteHub
from corevital.frames.sender import FrameSender
from corevital.frames.stamp import Stamp
from corevital_otel.risk.alarm import Alarm
from corevital_otel.risk.calibrated import Profile, Term
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """With a profile whose alarm is raised above 4 bits of entropy."""
    term = Term("entropy_max", 1.0, 1.0, 0.0, 1.0, None)
    alarm = Alarm("entropy_max", tuple(4.0 * (i + 1) / 40 for i in range(40)))
    path = tmp_path / "profile.json"
    Profile(
        terms=(term,), intercept=0.0, beta=(1.0, 1.0, 0.0), isotonic=None, alarm=alarm, label="bad", runs=50, bad=20,
        auroc=0.8,
    ).save(path)  # fmt: skip
    return Settings(db=None, profile=path)


@pytest.fixture(params=["thread", "process"])
def hub(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Hub]:
    """In the API server, and as a separate process has it."""
    hub = Hub(settings, identity=engine_key().hub if request.param == "process" else None)
    hub.start()
    yield hub
    hub.close()


def send(stamp: Stamp, tokens: int, entropy_bits: float) -> None:
    worker = FrameSender(Source("vllm", "v1", "raw"))
    for at in range(0, tokens, 8):
        rows, sampled = np.zeros(8, ROW), np.zeros(8, SAMPLED)
        rows["key"] = sampled["key"] = stamp.key
        rows["index"] = sampled["index"] = sampled["token"] = range(at, at + 8)
        rows["vocab"], rows["entropy"], sampled["logprob"] = 1000, entropy_bits * np.log(2), -1.0
        worker.send(stamp.server, rows, sampled)
    worker.close()


def until(done: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
    return done()


def test_a_frontends_sequence_is_ended_once_its_alarm_is_raised(hub: Hub, core: RemoteHub) -> None:  # noqa: F811
    good, bad, unasked = (hub.admit(request(name)) for name in ("good", "bad", "unasked"))
    assert good is not None
    assert bad is not None
    assert unasked is not None
    orders: list[str] = []
    core.watch(good, lambda: orders.append("good"))
    core.watch(bad, lambda: orders.append("bad"))
    send(good, 160, 1.0)
    send(unasked, 160, 6.0)
    send(bad, 160, 6.0)
    assert until(lambda: bool(orders))
    time.sleep(0.5)
    assert orders == ["bad"], "once, and no other"


def test_a_cores_own_sequence_is_ended_too_by_a_new_hub_as_well(settings: Settings, core: RemoteHub) -> None:  # noqa: F811
    first = Hub(settings, identity=engine_key().hub)
    first.start()
    stamp = core.admit(request())
    assert stamp is not None
    orders: list[str] = []
    core.watch(stamp, lambda: orders.append("end"))
    assert until(lambda: stamp.key in first._cores._watched)
    first.close()
    second = Hub(settings, identity=engine_key().hub)
    second.start()
    try:
        assert until(lambda: stamp.key in second._cores._watched)
        send(stamp, 160, 6.0)
        assert until(lambda: bool(orders))
        core.finish(stamp.key, ended(160))
        core.unwatch(stamp.key)
        assert core.drain(10.0)
        assert not second._cores._watched
    finally:
        second.close()


def test_an_order_for_a_sequence_that_has_ended_is_ignored(hub: Hub, core: RemoteHub) -> None:  # noqa: F811
    stamp = hub.admit(request())
    assert stamp is not None
    orders: list[str] = []
    core.watch(stamp, lambda: orders.append("end"))
    core.unwatch(stamp.key)
    send(stamp, 160, 6.0)
    time.sleep(0.5)
    assert orders == []


@pytest.mark.parametrize("ends", [7, ["7"], [True], {"a": 1}])
def test_an_answer_with_wrong_orders_is_none(ends: Any) -> None:
    body = events.MAGIC + json.dumps({"v": events.VERSION, "run": "r", "reported": [], "ends": ends}).encode()
    assert events.read_answer(body) is None


def test_an_answer_without_orders_is_as_it_was() -> None:
    assert events.read_answer(events.answer("r", [1])) == ("r", [1], [])
    assert b"ends" not in events.answer("r", [1])
    assert events.read_answer(events.answer("r", [1], [2])) == ("r", [1], [2])


def test_a_setting_that_can_have_no_effect_is_logged(logged: Callable[[], list[Any]]) -> None:
    Hub(Settings(db=None, stop_on="loop,alarm")).close()
    (said,) = [record.getMessage() for record in logged() if "COREVITAL_STOP_ON" in record.getMessage()]
    assert "set COREVITAL_PROFILE" in said
