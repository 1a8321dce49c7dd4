"""Engine cores and a hub: each sequence is one row, whatever happens to either of them."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corevital.frames import engine_key as keys
from corevital.frames import events
from corevital.frames.engine_key import engine_key
from corevital.frames.events import CoreInfo, Event
from corevital.frames.layout import ROW, SAMPLED, Frame, Source
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital.frames.receiver import Letter
from corevital.frames.remote_hub import RemoteHub
from corevital.frames.sender import FrameSender
from corevital.frames.stamp import Stamp
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.service.cores import CORE_SILENT_S, Cores
from corevital_otel.service.early import EarlyFrames
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings
from corevital_otel.store.reader import StoredReport, StoreError, StoreReader


@pytest.fixture(autouse=True)
def _own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", keys.HUB, keys.HUB_KEY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(keys.VARIABLE, np.random.default_rng().bytes(32).hex())


@pytest.fixture
def core() -> Iterator[RemoteHub]:
    core = RemoteHub()
    yield core
    core.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Hub]]:
    hubs: list[Hub] = []

    def start() -> Hub:
        hubs.append(Hub(Settings(db=tmp_path / "corevital.db"), identity=engine_key().hub))
        hubs[-1].start()
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.close()


def request(name: str = "r", **changes: Any) -> Admitted:
    values: dict[str, Any] = {"request_id": name, "engine_id": f"{name}-e", "sequence": 0, "operation": "chat"}
    return Admitted(**{**values, "model": "tiny", "arrival_ns": time.time_ns(), "prompt_tokens": 3, **changes})


def ended(tokens: int = 3, **changes: Any) -> Finished:
    return Finished(**{"reason": "stop", "token_ids": tuple(range(tokens)), "end_ns": time.time_ns(), **changes})


def send(stamp: Stamp, tokens: int) -> None:
    worker = FrameSender(Source("vllm", "v1", "raw"))
    rows, sampled = np.zeros(tokens, ROW), np.zeros(tokens, SAMPLED)
    rows["key"] = sampled["key"] = stamp.key
    rows["index"] = sampled["index"] = sampled["token"] = range(tokens)
    rows["vocab"], rows["entropy"], sampled["logprob"] = 100, 0.5, -1.0
    worker.send(stamp.server, rows, sampled)
    worker.close()


def rows(tmp_path: Path) -> list[StoredReport]:
    with contextlib.suppress(StoreError):
        return StoreReader(tmp_path / "corevital.db").list_reports(limit=100_000)
    return []


def test_a_sequence_of_a_core_is_a_row_with_its_details(
    core: RemoteHub, start: Callable[[], Hub], tmp_path: Path
) -> None:
    hub = start()
    stamp = core.admit(request("ä\ud800" * 3, tags=("a", "b"), temperature=0.5))
    assert stamp is not None
    send(stamp, 3)
    core.finish(stamp.key, ended(core=CoreFacts(queue_s=0.5, preemptions=0)))
    assert core.drain(10)
    hub.close()
    (row,) = rows(tmp_path)
    assert (row.request_id, row.output_tokens, row.span_id) == ("ä?" * 3, 3, f"{stamp.key:016x}")
    assert "corevital.incomplete" not in row.summary
    assert row.summary["corevital.tags"] == ["a", "b"]
    assert not core._held, "reported sequences are forgotten"


def test_a_hub_that_starts_late_receives_everything(core: RemoteHub, start: Callable[[], Hub], tmp_path: Path) -> None:
    stamps = [core.admit(request(f"r{number}")) for number in range(300)]
    for stamp in stamps:
        assert stamp is not None
        core.finish(stamp.key, ended())
    start()
    assert core.drain(20)
    assert Counter(row.request_id for row in rows(tmp_path)) == {f"r{number}": 1 for number in range(300)}


def test_a_new_hub_receives_again_what_the_old_one_lost(
    core: RemoteHub, start: Callable[[], Hub], tmp_path: Path
) -> None:
    first = start()
    stamps = [core.admit(request(f"r{number}")) for number in range(50)]
    for stamp in stamps[:20]:
        assert stamp is not None
        core.finish(stamp.key, ended())
    deadline = time.monotonic() + 10
    while first._assembler.running < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    first._assembler._live.clear()  # what a kill does to them
    first.close()
    start()
    for stamp in stamps[20:]:
        assert stamp is not None
        core.finish(stamp.key, ended())
    assert core.drain(20)
    assert Counter(row.request_id for row in rows(tmp_path)) == {f"r{number}": 1 for number in range(50)}


def test_a_lost_answer_makes_no_second_row(core: RemoteHub, start: Callable[[], Hub], tmp_path: Path) -> None:
    hub = start()
    stamp = core.admit(request())
    assert stamp is not None
    core.finish(stamp.key, ended())
    assert core.drain(10)
    again = [Event("admit", stamp.key, request()), Event("finish", stamp.key, ended())]
    core._resend.extend(again)  # as to a hub whose answer was lost, and, below, to one that knows nothing
    time.sleep(1.5)
    hub.close()
    core._resend.extend(again)
    start()
    deadline = time.monotonic() + 8
    while core._resend and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(4)
    assert [row.span_id for row in rows(tmp_path)] == [f"{stamp.key:016x}"]


def test_without_a_hub_a_core_loses_nothing_but_what_it_cannot_hold(
    core: RemoteHub, start: Callable[[], Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corevital.frames.remote_hub._MOST_HELD", 10)
    stamps = [core.admit(request(f"r{number}")) for number in range(15)]
    assert stamps.count(None) == 5
    begun = time.perf_counter()
    for stamp in stamps[:10]:
        assert stamp is not None
        core.finish(stamp.key, ended(1000))
    assert time.perf_counter() - begun < 1.0
    hub = start()
    assert core.drain(20)
    deadline = time.monotonic() + 10
    while hub.counters.lost(Loss.SEQUENCE_HUB_GONE) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert hub.counters.lost(Loss.SEQUENCE_HUB_GONE) == 5


def test_tokens_that_are_held_are_bounded(core: RemoteHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corevital.frames.remote_hub._MOST_TOKENS", 5000)
    for number in range(20):
        stamp = core.admit(request(f"r{number}"))
        assert stamp is not None
        core.finish(stamp.key, ended(1000))
    deadline = time.monotonic() + 10
    while len(core._held) > 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert core._tokens <= 5000
    assert len(core._held) == 5


def test_a_long_output_is_sent_whole(core: RemoteHub, start: Callable[[], Hub], tmp_path: Path) -> None:
    hub = start()
    stamp = core.admit(request())
    assert stamp is not None
    core.finish(stamp.key, ended(600_000))
    assert core.drain(20)
    hub.close()
    assert [row.output_tokens for row in rows(tmp_path)] == [600_000]


class Recorder:
    """Stands in for a hub: records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: list[tuple[bytes, bytes]] = []

    def answer(self, client: bytes, body: bytes) -> None:
        self.answers.append((client, body))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *about: self.calls.append((name, *about))


def letter(*sent: Any, version: int = events.VERSION, client: bytes = b"c") -> Letter:
    body = {"v": version, "core": {"engine": "e"}, "events": sent}
    return Letter(client, [events.MAGIC + json.dumps(body).encode(), b""])


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        ["admit"],
        ["admit", 1, None],
        ["admit", 1, {"request_id": 1}],
        ["admit", "x", {}],
        ["finish", 1, 7],
        ["finish", 1, {"token_ids": "x"}],
        ["unknown", 1, {}],
        ["facts", 1, {"preemptions": "x"}],
        ["facts", 2**70, [1]],
    ],
)
def test_a_malformed_event_is_counted(event: Any) -> None:
    recorder, counters = Recorder(), Counters()
    Cores(recorder, recorder, counters).take(letter(event, ["internal", 0, "scoring"]))  # type: ignore[arg-type]
    assert counters.lost(Loss.EVENT_MALFORMED) == 1
    assert recorder.calls == [("internal", "scoring")], "the others are handled"


def test_another_version_is_counted_and_logged_once(logged: Callable[[], list[Any]]) -> None:
    recorder, counters = Recorder(), Counters()
    cores = Cores(recorder, recorder, counters)  # type: ignore[arg-type]
    for _ in range(2):
        cores.take(letter(["internal", 0, "scoring"], version=2))
    assert counters.lost(Loss.EVENT_VERSION) == 2
    assert recorder.calls == []
    assert ["different versions" in record.getMessage() for record in logged()] == [True]


def test_a_core_that_is_gone_leaves_no_sequence_waiting() -> None:
    now = [0.0]
    recorder = Recorder()
    cores = Cores(recorder, recorder, Counters(), clock=lambda: now[0])  # type: ignore[arg-type]
    sent = json.loads(events.encode(CoreInfo(engine="e"), [Event("admit", 7, request())])[0][4:])["events"]
    cores.take(letter(*sent))
    for at, gone in ((50.0, False), (70.0, True)):
        now[0] = at
        cores.answer()
        assert (("is_gone", 7) in recorder.calls) is gone


def test_frames_wait_for_their_sequences_in_order_and_not_for_ever() -> None:
    now, known = [0.0], {1}
    early = EarlyFrames(lambda keys: keys <= known, clock=lambda: now[0])

    def frame(sender: int, *its: int) -> Frame:
        table = np.zeros(len(its), ROW)
        table["key"] = its
        return Frame(table, np.zeros(0, SAMPLED), sender=sender)

    one, both, after, other = frame(5, 1), frame(5, 1, 2), frame(5, 1), frame(6, 1)
    assert early.ready([one, both, after, other]) == [one, other]
    assert len(early) == 2
    known.add(2)
    assert early.ready([]) == [both, after]
    unknown = frame(5, 9)
    assert early.ready([unknown]) == []
    now[0] = 2.0
    assert early.ready([]) == [unknown]
    many = [frame(7, 9) for _ in range(600)]
    assert early.ready(many) == many[:88], "the number of waiting frames is bounded"


def test_a_hub_that_ends_leaves_the_sequences_of_a_living_core_to_the_next(
    core: RemoteHub, start: Callable[[], Hub], tmp_path: Path
) -> None:
    first, stamp = start(), core.admit(request())
    assert stamp is not None
    deadline = time.monotonic() + 10
    while not first.serves_cores() and time.monotonic() < deadline:
        time.sleep(0.01)
    first.close(failed=True)
    assert rows(tmp_path) == []
    start()
    core.finish(stamp.key, ended())
    assert core.drain(20)
    assert [row.finish_reason for row in rows(tmp_path)] == ["stop"]


def test_sequences_of_a_core_that_is_dead_end_with_an_error(start: Callable[[], Hub], tmp_path: Path) -> None:
    hub, core = start(), RemoteHub()
    assert core.admit(request()) is not None
    deadline = time.monotonic() + 10
    while not hub.serves_cores() and time.monotonic() < deadline:
        time.sleep(0.01)
    core.close()
    time.sleep(CORE_SILENT_S + 0.5)
    hub.close(failed=True)
    assert [row.finish_reason for row in rows(tmp_path)] == ["error"]
