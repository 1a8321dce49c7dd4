"""A sequence is not given up while its records may lie unread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from corevital.frames.layout import ROW, SAMPLED, Frame, Source
from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.receiver import Receiver
from corevital.frames.sender import FrameSender
from corevital.frames.stamp import Stamp
from corevital_otel.report import RequestReport
from corevital_otel.service.loop import Hub
from corevital_otel.service.patience import Patience
from corevital_otel.settings import Settings
from corevital_otel.store.content import Content

DROPPED = "corevital.telemetry.dropped"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_long_turn_takes_no_more_patience_than_an_idle_one() -> None:
    clock = Clock()
    patience = Patience(clock)
    for passed in (0.02, 0.5, 0.52):
        clock.now += passed
        patience.turn(empty=True)
    assert patience.now == pytest.approx(1.04)
    clock.now += 3600  # the machine slept
    assert patience.turn(empty=True) < 1.04 + 1.0


def test_patience_stands_still_while_more_is_unread_but_not_for_ever() -> None:
    clock = Clock()
    patience = Patience(clock)
    patience.turn(empty=True)
    for _ in range(20):
        clock.now += 1.0
        assert patience.turn(empty=False) == patience.now == 0.0
    clock.now += 1.0
    assert 0 < patience.turn(empty=True) < 1, "the time in which more was unread does not count"
    before = patience.now
    for _ in range(40):
        clock.now += 1.0
        patience.turn(empty=False)
    assert patience.now > before + 2.0, "a socket that is never empty keeps no lost sequence for ever"


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    clock = Clock()
    patience = Patience(clock)
    clock.now = 50.0
    assert patience.turn(empty=True) == 0.0


class Scene:
    """A hub, a worker and the reports that come out."""

    def __init__(self) -> None:
        self.hub, self.worker = Hub(Settings(db=None), "m"), FrameSender(Source("vllm", "v1", "raw"))
        self.reports: list[RequestReport] = []
        put: Callable[..., Any] = self.hub._outputs.put

        def seen(report: RequestReport, content: Content | None = None) -> None:
            self.reports.append(report)
            put(report, content)

        self.hub._outputs.put = seen  # type: ignore[method-assign]

    def admit(self, number: int = 0) -> Stamp:
        stamp = self.hub.admit(Admitted(request_id=f"r{number}", engine_id="e", sequence=0, operation="chat",
                                        model="m", arrival_ns=time.time_ns(), prompt_tokens=1))  # fmt: skip
        assert stamp is not None
        return stamp

    def send(self, stamp: Stamp, tokens: int = 2) -> None:
        rows, sampled = np.zeros(tokens, ROW), np.zeros(tokens, SAMPLED)
        for table in (rows, sampled):
            table["key"], table["index"] = stamp.key, range(tokens)
        self.worker.send(stamp.server, rows, sampled)

    def finish(self, stamp: Stamp, tokens: int = 2) -> None:
        self.hub.finish(stamp.key, Finished(reason="stop", token_ids=(0,) * tokens, end_ns=time.time_ns()))

    def wait_for(self, count: int, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while len(self.reports) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    scene = Scene()
    yield scene
    scene.hub.close()
    scene.worker.close()


def held_up(hub: Hub, name: str, meanwhile: Callable[[], object], seconds: float = 2.3) -> None:
    """After the first call of a step of the hub's turn the hub does not run for a while."""
    step = getattr(hub, name)
    calls: list[int] = []

    def slow(*args: Any) -> Any:
        result = step(*args)
        if not calls:
            calls.append(1)
            meanwhile()
            time.sleep(seconds)
        return result

    setattr(hub, name, slow)


@pytest.mark.parametrize("step", ["_finished", "_take", "_refresh"])
def test_records_that_arrive_in_a_long_turn_are_read_before_anything_is_given_up(scene: Scene, step: str) -> None:
    stamps: list[Stamp] = []
    held_up(scene.hub, step, lambda: list(map(scene.send, stamps)))
    if step == "_take":
        stamps.append(scene.admit())
        other = scene.admit(1)
        scene.finish(stamps[0])
        scene.send(other, 1)
        scene.hub.start()
        scene.wait_for(1)
    else:
        stamps.append(scene.admit())
        scene.finish(stamps[0])
        scene.hub.start()
        scene.wait_for(1)
    assert (scene.reports[0].features.tokens, scene.reports[0].incomplete) == (2, False)
    assert scene.hub.counters.get(DROPPED, what="record") == 0


def test_a_burst_of_ends_longer_than_the_wait_loses_no_record(scene: Scene) -> None:
    """Each end takes a while to handle: the last one's records have been in the socket for longer than the wait."""
    finish = scene.hub._assembler.finish

    def slow(key: int, outcome: Finished) -> bool:
        time.sleep(0.03)
        return finish(key, outcome)

    scene.hub._assembler.finish = slow  # type: ignore[method-assign]
    stamps = [scene.admit(number) for number in range(100)]
    for stamp in stamps:
        scene.finish(stamp)
    scene.hub.start()
    time.sleep(0.3)
    for stamp in stamps:
        scene.send(stamp)
    scene.wait_for(100)
    assert not any(report.incomplete for report in scene.reports)


def test_what_a_call_leaves_unread_keeps_deadlines_waiting(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket read one frame at a time, slower than the wait."""
    receive = Receiver.messages

    def one_by_one(receiver: Receiver) -> Iterator[Frame]:
        for frame in receive(receiver):
            yield frame
            receiver.empty = False
            time.sleep(0.1)
            return

    monkeypatch.setattr(Receiver, "messages", one_by_one)
    stamps = [scene.admit(number) for number in range(40)]
    for stamp in stamps:
        scene.finish(stamp)
        scene.send(stamp)
    scene.hub.start()
    scene.wait_for(40)
    assert not any(report.incomplete for report in scene.reports)


def test_one_whose_records_never_come_is_given_up_in_time(scene: Scene) -> None:
    scene.hub.start()
    stamp = scene.admit()
    begun = time.monotonic()
    scene.finish(stamp)
    scene.wait_for(1)
    assert time.monotonic() - begun > 1.9
    assert scene.reports[0].incomplete


def test_a_stopping_hub_reads_what_lies_in_its_socket(scene: Scene) -> None:
    scene.hub.start()
    stamps = [scene.admit(number) for number in range(200)]
    held_up(scene.hub, "_refresh", lambda: None, 0.5)
    for stamp in stamps:
        scene.send(stamp)
        scene.finish(stamp)
    scene.hub.close()
    assert len(scene.reports) == 200
    assert not any(report.incomplete for report in scene.reports)


def test_drain_waits_for_those_that_have_ended_and_for_no_others(scene: Scene) -> None:
    scene.hub.start()
    runs, ended = scene.admit(0), scene.admit(1)
    assert scene.hub.drain(5), "nothing has ended"
    scene.finish(ended)
    assert not scene.hub.drain(0.3), "its records are still in the worker"
    scene.send(ended)
    begun = time.monotonic()
    assert scene.hub.drain(10)
    assert [report.admitted.request_id for report in scene.reports] == ["r1"]
    assert time.monotonic() - begun < 5
    scene.finish(runs, 0)
    assert scene.hub.drain(10)
    assert len(scene.reports) == 2
    assert not scene.hub._drains


def test_drain_of_a_hub_that_does_not_run_returns_at_once() -> None:
    hub = Hub(Settings(db=None), "m")
    begun = time.monotonic()
    assert hub.drain(10)
    stamp = hub.admit(Admitted(request_id="r", engine_id="e", sequence=0, operation="chat", model="m", arrival_ns=1,
                               prompt_tokens=1))  # fmt: skip
    assert stamp is not None
    assert not hub.drain(10)
    hub.close()
    assert hub.drain(10)
    hub.finish(stamp.key, Finished(reason="stop", token_ids=(), end_ns=1))
    assert time.monotonic() - begun < 5
