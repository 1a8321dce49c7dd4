"""Engine cores and a hub where something breaks between them: lost connections, messages too large, bad events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.harness.processes import within

from corevital.frames import engine_key as keys
from corevital.frames import events, remote_hub
from corevital.frames.engine_key import engine_key
from corevital.frames.events import CoreInfo, Event
from corevital.frames.lifecycle import Admitted, Finished, StopRule
from corevital.frames.receiver import Letter
from corevital.frames.remote_hub import RemoteHub
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.service.cores import Cores
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings
from corevital_otel.store.reader import StoreReader


@pytest.fixture(autouse=True)
def _own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", keys.HUB, keys.HUB_KEY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(keys.VARIABLE, os.urandom(32).hex())


@pytest.fixture
def core() -> Iterator[RemoteHub]:
    core = RemoteHub()
    yield core
    core.close()


def request(name: str = "r", **changes: Any) -> Admitted:
    values: dict[str, Any] = {"request_id": name, "engine_id": f"{name}-e", "sequence": 0, "operation": "chat"}
    return Admitted(**{**values, "model": "tiny", "arrival_ns": time.time_ns(), "prompt_tokens": 3, **changes})


def ended(tokens: int = 3, **changes: Any) -> Finished:
    return Finished(**{"reason": "stop", "token_ids": tuple(range(tokens)), "end_ns": time.time_ns(), **changes})


class Recorder:
    """Stands in for a hub: notes its calls and answers; one of its methods can fail."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: list[tuple[bytes, str, list[int]]] = []
        self._fails = fails

    def answer(self, client: bytes, body: bytes) -> None:
        found = events.read_answer(body)
        assert found is not None
        self.answers.append((client, found.run, found.reported))

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*about: Any) -> None:
            self.calls.append((name, *about))
            if name == self._fails:
                raise RuntimeError(name)

        return call


def letter(*told: Any, client: bytes = b"c") -> Letter:
    body = {"v": events.VERSION, "core": {"engine": "e"}, "events": told}
    return Letter(client, [events.MAGIC + json.dumps(body).encode(), b""])


def plain(event: Event) -> Any:
    return json.loads(events.encode(CoreInfo(engine="e"), [event])[0].removeprefix(events.MAGIC))["events"][0]


def cores_of(recorder: Recorder, counters: Counters | None = None, **changes: Any) -> Cores:
    return Cores(recorder, recorder, counters or Counters(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [0, -1, 2**64, 2**4000])
def test_no_key_but_one_of_64_bits_is_admitted(key: int) -> None:
    recorder, counters = Recorder(), Counters()
    cores_of(recorder, counters).take(letter(plain(Event("admit", key, request()))))
    assert recorder.calls == []
    assert counters.lost(Loss.EVENT_MALFORMED) == 1


def test_what_cannot_be_read_of_a_sequence_is_neither_waited_for_nor_kept() -> None:
    recorder, counters = Recorder(), Counters()
    cores = cores_of(recorder, counters)
    admit = plain(Event("admit", 8, request()))
    cores.take(letter(["admit", 7, {"request_id": 1}], admit, ["finish", 8, {"token_ids": 0, "reason": []}]))
    cores.answer()
    assert recorder.answers[-1][2] == [7], "its core may forget it"
    assert [call[:2] for call in recorder.calls] == [("admits", 8), ("is_gone", 8)]
    assert counters.lost(Loss.EVENT_MALFORMED) == 2
    assert list(cores._client_of) == [8]


def test_one_event_that_fails_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COREVITAL_RAISE", raising=False)
    recorder, counters = Recorder(fails="admits"), Counters()
    cores_of(recorder, counters).take(letter(plain(Event("admit", 8, request())), ["internal", 0, "scoring"]))
    assert recorder.calls[-1] == ("internal", "scoring")
    assert counters.lost(Loss.EVENT_FAULT) == 1


def test_a_core_that_connects_again_gets_a_new_run_and_keeps_its_sequences() -> None:
    now, recorder = [0.0], Recorder()
    cores = cores_of(recorder, clock=lambda: now[0])
    admit = plain(Event("admit", 7, request()))
    cores.take(letter(admit, client=b"old"))
    cores.answer()
    now[0] = 50.0
    cores.take(letter(admit, client=b"new"))
    cores.answer()
    runs = {client: run for client, run, _ in recorder.answers}
    assert runs[b"old"] != runs[b"new"], "so it sends again what was lost with the old connection"
    now[0] = 70.0
    cores.answer()
    assert ("is_gone", 7) not in recorder.calls
    cores.reported(7)
    cores.answer()
    assert recorder.answers[-1][::2] == (b"new", [7])


def test_a_core_forgets_a_sequence_once_its_row_is_written() -> None:
    now, recorder, rows = [0.0], Recorder(), [5, 0]
    cores = cores_of(recorder, clock=lambda: now[0], rows=lambda: (rows[0], rows[1]))
    for key in (7, 8):
        cores.take(letter(plain(Event("admit", key, request()))))
    rows[:] = 6, 1
    cores.reported(7)
    rows[:] = 7, 2
    cores.reported(8)
    cores.answer()
    assert recorder.answers[-1][2] == []
    rows[:] = 7, 1
    cores.answer()
    assert recorder.answers[-1][2] == [7]
    now[0] = 2.0
    cores.answer()
    assert recorder.answers[-1][2] == [8], "a store that stands still holds nobody up for ever"


@pytest.fixture
def sent(core: RemoteHub, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What the core sends, which goes nowhere."""
    sent: list[Event] = []

    def send(self: RemoteHub, routes: object, server: str, batch: list[Event]) -> list[Event]:
        sent.extend(batch)
        return []

    monkeypatch.setattr(RemoteHub, "_send", send)
    return sent


def test_a_new_hub_gets_the_beginning_of_a_sequence_before_its_end(core: RemoteHub, sent: list[Event]) -> None:
    """The engine's thread ends a sequence just after the sending one has noted what to send again."""
    again, end = Event("admit", 7, request()), Event("finish", 7, ended())
    core._resend.append(again)
    core._send_new(None, [end])
    assert sent == [again, end]


def test_a_hub_that_was_not_needed_yet_is_not_called_silent(core: RemoteHub, logged: Callable[[], list[Any]]) -> None:
    core._patience_s = 0.5
    time.sleep(0.7)
    core.want()
    time.sleep(0.2)
    assert logged() == []
    within(5, logged)


def test_a_silent_hub_is_sent_no_sequences_until_it_answers(core: RemoteHub, sent: list[Event]) -> None:
    core._patience_s = 0.1
    core.want()
    within(5, core._is_silent)
    sent.clear()
    stamps = [core.admit(request(f"r{number}")) for number in range(100)]
    core.unobserved(1)
    within(5, lambda: sent)
    assert {event.kind for event in sent} == {"unobserved"}
    sent.clear()
    core._answered("a run", [])
    within(5, lambda: len(sent) >= len(stamps))
    assert [event.kind for event in sent] == ["admit"] * 100


def test_what_does_not_fit_into_one_message_is_sent_in_several(core: RemoteHub, tmp_path: Path) -> None:
    hub = Hub(Settings(db=tmp_path / "corevital.db"), identity=engine_key().hub)
    hub.start()
    rule = StopRule(stop=tuple(f"{number}" + "\U0001f600" * 1000 for number in range(64)))
    for number in range(40):
        stamp = core.admit(request(f"r{number}" + "x" * 60_000, model="m" * 60_000))
        assert stamp is not None
        core.finish(stamp.key, ended(30_000, reason="abort", stop_rule=rule))
    long = core.admit(request("long"))
    assert long is not None
    core.finish(long.key, ended(1 << 20))
    assert core.drain(40)
    hub.close()
    assert len(StoreReader(tmp_path / "corevital.db").list_reports(limit=100)) == 41
    assert core._tokens == 0


def test_an_event_that_cannot_be_encoded_is_dropped_and_counted(
    core: RemoteHub, sent: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(keys.VARIABLE, os.urandom(32).hex())
    monkeypatch.delenv("COREVITAL_RAISE", raising=False)
    bad = core.admit(request("bad", seed=object()))
    good = core.admit(request("good"))
    assert bad is not None
    assert good is not None
    within(10, lambda: bad.key not in core._held)
    assert good.key in core._held


def test_nothing_is_taken_in_once_it_is_closed(core: RemoteHub) -> None:
    core.close()
    assert core.admit(request()) is None
    core.unobserved(1)
    assert not core._events


def test_stop_strings_count_in_what_is_held(core: RemoteHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_hub, "_MOST_TOKENS", 5000)
    for number in range(20):
        stamp = core.admit(request(f"r{number}"))
        assert stamp is not None
        core.finish(stamp.key, ended(1, reason="abort", stop_rule=StopRule(stop=("x" * 999,))))
    within(10, lambda: len(core._held) == 5)
