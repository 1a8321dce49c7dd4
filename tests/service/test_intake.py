"""What the hub keeps of others is bounded, and nothing that a client or a worker says harms what comes out."""

from __future__ import annotations

import dataclasses
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import pytest

from corevital.frames.layout import ROW, SAMPLED, Frame, Source
from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.receiver import Letter, Transit
from corevital_otel.counters import MOST, Counters
from corevital_otel.report import RequestReport
from corevital_otel.service import loop
from corevital_otel.service.intake import Intake
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings
from corevital_otel.spans.attributes import content_attributes
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.rows import Row

DROPPED = "corevital.telemetry.dropped"


def admitted(**changes: Any) -> Admitted:
    values: dict[str, Any] = {"request_id": "r", "engine_id": "e", "sequence": 0, "operation": "chat", "model": "m"}
    return Admitted(**{**values, "arrival_ns": time.time_ns(), "prompt_tokens": 3, **changes})


def finished(**changes: Any) -> Finished:
    return Finished(**{"reason": "stop", "token_ids": (), "end_ns": time.time_ns(), **changes})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    made: list[Hub] = []

    def make(model: str = "m", **options: Any) -> Hub:
        made.append(Hub(Settings(db=tmp_path / "corevital.db"), model, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_client_strings_are_bounded_in_every_output(hub: Callable[..., Hub], tmp_path: Path) -> None:
    running = hub("m\udcff" + "m" * 9000, engine={"engine.dtype": "d\ud800" * 9000, "engine.max_model_len": 7})
    running.start()
    wild = "\udcff\ud800" + "ä" * 100_000
    asked = dict.fromkeys(("request_id", "engine_id", "operation", "model", "engine_version", "runner"), wild)
    stamp = running.admit(admitted(**asked, capture=wild, prompt_hash=wild, tags=(wild,) * 500))
    assert stamp is not None
    running.finish(stamp.key, finished(reason=wild))
    running.close()
    (row,) = StoreReader(tmp_path / "corevital.db").list_reports(limit=10)
    assert (row.request_id[:3], len(row.request_id.encode()), len(row.model.encode())) == ("??ä", 256, 256)
    strings = [value for value in row.summary.values() if isinstance(value, str)]
    strings += [one for value in row.summary.values() if isinstance(value, list) for one in value]
    assert max(len(text.encode()) for text in strings) <= 256
    assert len(row.summary["corevital.tags"]) <= 16
    prometheus_client.generate_latest().decode()
    resource = running._outputs._spans.resource.attributes
    assert all(len(value.encode()) <= 300 for value in resource.values() if isinstance(value, str))


def test_beyond_its_queue_nothing_is_admitted_and_every_end_is_taken(
    hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_MOST_EVENTS", 10)
    stuck = hub()
    stamps = [stuck.admit(admitted(request_id=f"r{number}")) for number in range(30)]
    assert [stamp is not None for stamp in stamps] == [True] * 10 + [False] * 20
    assert stuck.counters.get(DROPPED, what="sequence", why="queue_full") == 20
    for stamp in stamps[:10]:
        assert stamp is not None
        stuck.finish(stamp.key, finished())
    stuck.start()
    assert stuck.drain(20)
    assert stuck._assembler.running == 0
    assert stuck.admit(admitted()) is not None


def test_a_turn_is_not_held_by_events_that_keep_coming(hub: Callable[..., Hub]) -> None:
    """Each event brings the next, for ever."""
    running = hub()
    seen: list[int] = []

    def again() -> None:
        seen.append(1)
        running._events.append(again)

    running._events.append(again)
    begun = time.monotonic()
    running._turn()
    running._turn()
    assert len(seen) == 2
    assert time.monotonic() - begun < 5


def test_content_is_held_within_bytes_and_counted_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters()
    intake = Intake(counters, content_bytes=100_000)
    kept = [intake.admitted(admitted(prompt_text="p" * 10_000_000)) for _ in range(10)]
    there = [request for request in kept if request.prompt_text is not None]
    assert len(there) == 6
    assert counters.get(DROPPED, what="content", why="too_much") == 4
    assert intake.finished(finished(text="t")).text == "t"
    intake.release(*[request.prompt_text for request in there], "t")
    assert intake.admitted(admitted(prompt_text="p" * 99)).prompt_text == "p" * 99
    intake.release("p" * 99)
    assert intake._held == 0


def test_content_that_was_cut_at_admission_says_how_much_is_left_out(report: Callable[..., RequestReport]) -> None:
    intake, whole = Intake(Counters()), "x" * 16_000 + "y" * 1000
    made = report()
    changes: dict[str, Any] = {"admitted": dataclasses.replace(made.admitted, prompt_text=whole),
                               "outcome": dataclasses.replace(made.outcome, text=whole)}  # fmt: skip
    uncut = dataclasses.replace(made, **changes)
    cut = dataclasses.replace(
        made, admitted=intake.admitted(changes["admitted"]), outcome=intake.finished(changes["outcome"])
    )
    assert len(cut.admitted.prompt_text or "") < len(whole)
    assert content_attributes(cut) == content_attributes(uncut)
    assert "[616 characters left out]" in json.dumps(content_attributes(cut), ensure_ascii=False)
    record = record_of(cut, SpanIds("1" * 32, "1" * 16, None, exported=True))
    assert record.content == content_attributes(uncut)
    assert "xxxx" not in str(Row(record).encode(None)), "the store never has content"


def test_content_is_released_at_every_end(hub: Callable[..., Hub]) -> None:
    running = hub()
    running.start()
    stamp = running.admit(admitted(prompt_text="p" * 500))
    assert stamp is not None
    for key in (stamp.key, stamp.key, 12345):
        running.finish(key, finished(text="t" * 500))
    assert running.drain(10)
    running.close()
    assert running._intake._held == 0


def test_a_huge_prompt_is_not_kept_for_later(hub: Callable[..., Hub]) -> None:
    stuck = hub()
    tracemalloc.start()
    try:
        for _ in range(5):
            stuck.admit(admitted(request_id="r" * 5_000_000, prompt_text="p" * 20_000_000))
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()


def frame(sender: int, dropped: int) -> Frame:
    return Frame(np.empty(0, ROW), np.empty(0, SAMPLED), Source(), sender, dropped, float("nan"))


def test_a_workers_count_of_lost_records_is_bounded(hub: Callable[..., Hub]) -> None:
    running = hub()
    for dropped in (2**64 - 1, 5, 2**64 - 1, 0):
        running._take(frame(1, dropped))
    assert running.counters.get(DROPPED, what="record", why="queue_full") == 2**32
    for sender in range(5000):
        running._take(frame(sender, 1))
    assert len(running._losses) <= 1024
    for _ in range(3):
        running._take(frame(7, 0))  # says less than before: nothing is taken back
    assert running.counters.get(DROPPED, what="record", why="queue_full") < 2**33


def test_no_count_outgrows_an_otlp_integer() -> None:
    counters = Counters()
    for _ in range(3):
        counters.add("n", 2**62, what="x")
    assert counters.get("n") == MOST == 2**63 - 1


def test_unknown_tokens_still_end_their_sequence(hub: Callable[..., Hub], tmp_path: Path) -> None:
    running = hub()
    running.start()
    stamp = running.admit(admitted())
    assert stamp is not None
    running.finish(stamp.key, finished(token_ids=(1, 2**40, -(2**70))))
    assert running.drain(10)
    running.close()
    (row,) = StoreReader(tmp_path / "corevital.db").list_reports(limit=10)
    assert row.output_tokens == 3


def test_an_error_in_a_turn_does_not_end_the_thread(hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")
    running, faults = hub(), [OSError("out of descriptors")]
    receive = running._receiver.messages

    def frames() -> Iterator[Frame | Letter | Transit]:
        if faults:
            raise faults.pop()
        return receive()

    running._receiver.messages = frames  # type: ignore[method-assign]
    running.start()
    stamp = running.admit(admitted())
    assert stamp is not None
    running.finish(stamp.key, finished())
    assert running.drain(10)


def test_held_content_is_released_by_its_size_at_intake(hub: Callable[..., Hub]) -> None:
    counters = Counters()
    intake = Intake(counters, content_bytes=1000)
    for _ in range(50):
        kept = intake.finished(finished(text="ä" * 60))
        assert kept.text is not None
        json.dumps(kept.text)
        kept.text.encode()
        intake.release(kept.text)
    assert intake._held == 0
    assert intake.finished(finished(text="a" * 1001)).text is None
    assert counters.get(DROPPED, what="content") == 1


def test_adapters_that_no_longer_run_are_forgotten(hub: Callable[..., Hub]) -> None:
    running = hub()
    running.start()
    for number in range(300):
        stamp = running.admit(admitted(model=f"adapter-{number}"))
        assert stamp is not None
        running.finish(stamp.key, finished())
    assert running.drain(5.0)
    assert not running._assembler._running
