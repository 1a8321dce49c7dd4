"""The telemetry thread, end to end on real frames: every admitted sequence is one row, even if frames are lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corevital.frames.layout import ROW, SAMPLED, Frame, Source
from corevital.frames.lifecycle import INTERNAL_KINDS, Admitted, Finished
from corevital.frames.receiver import Letter, Receiver, Transit
from corevital.frames.sender import FrameSender
from corevital.frames.stamp import Stamp
from corevital_otel.losses import Loss
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings, SettingsError
from corevital_otel.store.reader import StoredReport, StoreError, StoreReader
from corevital_otel.verdicts.collector import CURRENT, Collector


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    started: list[Hub] = []

    def start(**settings: Any) -> Hub:
        started.append(Hub(Settings(db=tmp_path / "corevital.db", **settings)))
        started[-1].start()
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture
def worker() -> Iterator[FrameSender]:
    sender = FrameSender(Source("vllm", "v1", "raw"))
    yield sender
    sender.close()


def admitted(number: int = 0, **changes: Any) -> Admitted:
    values: dict[str, Any] = {"request_id": f"r{number}", "engine_id": f"e{number}", "sequence": 0, "operation": "chat"}
    return Admitted(**{**values, "model": "tiny", "arrival_ns": time.time_ns(), "prompt_tokens": 3, **changes})


def finished(tokens: int, reason: str = "stop") -> Finished:
    return Finished(reason=reason, token_ids=tuple(range(tokens)), end_ns=time.time_ns())


def send_tokens(worker: FrameSender, stamp: Stamp, indices: range) -> None:
    for index in indices:
        rows, sampled = np.zeros(1, ROW), np.zeros(1, SAMPLED)
        rows["key"], rows["index"], rows["entropy"], rows["vocab"] = stamp.key, index, 0.5, 100
        rows["topk_ids"], rows["topk_logprobs"] = np.arange(20), -3.0
        sampled["key"], sampled["index"], sampled["token"], sampled["logprob"] = stamp.key, index, index, -1.0
        worker.send(stamp.server, rows, sampled)


def rows(tmp_path: Path) -> dict[str, StoredReport]:
    with contextlib.suppress(StoreError):  # not made yet
        return {row.request_id: row for row in StoreReader(tmp_path / "corevital.db").list_reports(limit=1000)}
    return {}


def test_many_sequences_at_once_are_one_row_each(hub: Callable[..., Hub], worker: FrameSender, tmp_path: Path) -> None:
    running = hub(capture="full")
    stamps = [running.admit(admitted(number)) for number in range(50)]
    assert all(stamp is not None for stamp in stamps)
    for number, stamp in enumerate(stamps):
        assert stamp is not None
        send_tokens(worker, stamp, range(number % 7 + 1))
        running.finish(stamp.key, finished(number % 7 + 1))
    running.close()
    found = rows(tmp_path)
    assert len(found) == 50
    for number in range(50):
        row = found[f"r{number}"]
        assert row.summary["corevital.tokens.observed"] == row.output_tokens == number % 7 + 1
        assert row.summary["corevital.entropy.mean"] == pytest.approx(0.5 / np.log(2))
        assert row.summary["corevital.runner"] == "v1"
        assert "corevital.incomplete" not in row.summary


def test_sequences_that_nobody_followed_are_counted_from_any_thread(hub: Callable[..., Hub]) -> None:
    running = hub()
    assert ("corevital.sequences.unobserved", ()) in running.counters.snapshot(), "0 from the start, for the alert"

    def count() -> None:
        for _ in range(500):
            running.unobserved(2)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert running.counters.get("corevital.sequences.unobserved") == 8 * 500 * 2


def test_a_damaged_count_of_unobserved_sequences_does_no_harm(hub: Callable[..., Hub]) -> None:
    running = hub()
    for count in (0, -5):
        running.unobserved(count)
    assert running.counters.get("corevital.sequences.unobserved") == 0
    running.unobserved(2**64 - 1)
    assert running.counters.get("corevital.sequences.unobserved") == 2**32


def test_a_sequence_admitted_while_the_thread_is_between_two_reads_is_known_before_its_frame(
    hub: Callable[..., Hub], worker: FrameSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = hub()
    stamps: list[Stamp] = []
    receive = Receiver.messages

    def admit_first(receiver: Receiver) -> Iterator[Frame | Letter | Transit]:
        """The frontend and the worker run on, at the worst moment, while the thread is about to look for frames."""
        if not stamps:
            stamp = running.admit(admitted())
            assert stamp is not None
            stamps.append(stamp)
            send_tokens(worker, stamp, range(2))
            time.sleep(0.2)
        return receive(receiver)

    monkeypatch.setattr(Receiver, "messages", admit_first)
    running.finish(1, finished(0))  # wakes the thread
    while not stamps:
        time.sleep(0.01)
    running.finish(stamps[0].key, finished(2))
    running.close()
    row = rows(tmp_path)["r0"]
    assert row.summary["corevital.tokens.observed"] == 2
    assert "corevital.incomplete" not in row.summary


def test_an_error_in_one_event_affects_no_other(
    hub: Callable[..., Hub], worker: FrameSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")
    running = hub()
    running._events.append(lambda: 1 // 0)  # type: ignore[arg-type]
    stamp = running.admit(admitted())
    assert stamp is not None
    send_tokens(worker, stamp, range(2))
    running.finish(stamp.key, finished(2))
    running.close()
    assert rows(tmp_path)["r0"].summary["corevital.tokens.observed"] == 2


def test_what_serves_no_client_is_counted_and_nothing_else(hub: Callable[..., Hub], tmp_path: Path) -> None:
    running = hub()
    for kind in ("beam_search", "beam_search", "scoring", "x" * 1000, "y"):
        running.internal(kind)
    running.close()
    counted = {
        kind: running.counters.get("corevital.requests.internal", kind=kind) for kind in (*INTERNAL_KINDS, "other")
    }
    assert counted == {"beam_search": 2, "scoring": 1, "language_detection": 0, "warm_up": 0, "other": 2}
    assert running.counters.get("corevital.requests.internal") == 5, "no label is unbounded"
    assert rows(tmp_path) == {}


@pytest.mark.parametrize(("role", "flags", "level"), [("prefill", (), "unknown"), (None, ("truncated",), "low")])
def test_a_first_leg_is_not_truncated_and_is_kept_only_by_the_rate(
    hub: Callable[..., Hub], worker: FrameSender, tmp_path: Path, role: str | None, flags: tuple[str, ...], level: str
) -> None:
    for rate, reason, kept in ((0.0, "length", role is None), (0.0, "error", True), (1.0, "length", True)):
        running = hub(sample_rate=rate)
        name = f"r-{rate}-{reason}"
        stamp = running.admit(admitted(request_id=name, role=role, prefill_id="e0", transfer_id="t0"))
        assert stamp is not None
        send_tokens(worker, stamp, range(1))
        running.finish(stamp.key, finished(1, reason))
        running.close()
        assert running.counters.lost(Loss.RECORD_MISSING) == 0
        row = rows(tmp_path).get(name)
        assert (row is not None) is kept
        if row is not None and reason == "length":
            assert (tuple(row.flags), row.risk_level, row.finish_reason) == (flags, level, "length")
            assert row.summary.get("corevital.role") == role
            assert row.summary["corevital.prefill.request_id"] == "e0"
            assert row.summary["corevital.transfer.id"] == "t0"


def test_the_processes_own_random_numbers_are_left_alone(hub: Callable[..., Hub], tmp_path: Path) -> None:
    running = hub(sample_rate=0.5)
    random.seed(0)
    expected = random.Random(0).random()
    for number in range(50):
        stamp = running.admit(admitted(number))
        if stamp is not None:
            running.finish(stamp.key, finished(0))
    running.close()
    assert random.random() == expected
    assert 0 < len({row.trace_id for row in rows(tmp_path).values()}) == len(rows(tmp_path)) < 50


def test_what_is_running_at_the_end_is_reported_and_not_lost(
    hub: Callable[..., Hub], worker: FrameSender, tmp_path: Path
) -> None:
    running = hub()
    stamp = running.admit(admitted())
    assert stamp is not None
    send_tokens(worker, stamp, range(3))
    time.sleep(0.2)
    start = time.monotonic()
    running.close()
    running.close()
    assert time.monotonic() - start < 5
    assert rows(tmp_path)["r0"].summary["corevital.incomplete"] is True


def test_lost_frames_are_counted(hub: Callable[..., Hub], worker: FrameSender, tmp_path: Path) -> None:
    running = hub()
    stamp = running.admit(admitted())
    assert stamp is not None
    send_tokens(worker, stamp, range(2))
    worker.drop(stamp.server, 7)
    send_tokens(worker, stamp, range(3, 5))
    running.finish(stamp.key, finished(5))
    deadline = time.monotonic() + 10
    while not rows(tmp_path):
        assert time.monotonic() < deadline, "the wait is bounded"
        time.sleep(0.05)
    row = rows(tmp_path)["r0"]
    assert row.summary["corevital.incomplete"] is True
    assert (row.output_tokens, row.summary["corevital.tokens.observed"]) == (5, 4)
    assert running.counters.get("corevital.telemetry.dropped", what="record", why="queue_full") == 7


def test_all_are_measured_and_those_drawn_or_flagged_are_kept(
    hub: Callable[..., Hub], worker: FrameSender, tmp_path: Path
) -> None:
    never = hub(sample_rate=0.0)
    assert never.admit(admitted(sample=False)) is None, "it asked not to be measured"
    wanted = {"plain": admitted(1), "asked": admitted(2, sample=True), "loop": admitted(3)}
    for name, request in wanted.items():
        stamp = never.admit(request)
        assert stamp is not None
        never.finish(stamp.key, finished(0, "repetition" if name == "loop" else "stop"))
    never.close()
    assert rows(tmp_path).keys() == {"r2", "r3"}


@pytest.mark.parametrize(
    ("settings", "kept"), [({}, {"r2", "r3"}), ({"sample_rate": 1.0}, {"r1", "r2", "r3"})], ids=["sampler", "rate"]
)
def test_the_sampler_draws_rows_unless_the_rate_is_set(
    hub: Callable[..., Hub],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, float],
    kept: set[str],
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    running = hub(**settings)
    for request, reason in (admitted(1), "stop"), (admitted(2, sample=True), "stop"), (admitted(3), "repetition"):
        stamp = running.admit(request)
        assert stamp is not None
        running.finish(stamp.key, finished(0, reason))
    running.close()
    assert rows(tmp_path).keys() == kept


def test_a_closed_hub_measures_nothing_and_leaves_no_thread(hub: Callable[..., Hub]) -> None:
    running = hub()
    running.close()
    assert running.admit(admitted()) is None
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("corevital-hub", "corevital-store")]


def test_the_baseline_is_kept_over_a_restart(
    hub: Callable[..., Hub], worker: FrameSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corevital_otel.risk.baseline.SEEN", 60)
    monkeypatch.setattr("corevital_otel.risk.baseline.RECENT", 20)
    monkeypatch.setattr("corevital_otel.risk.baseline._EVERY", 50)

    def serve(first: int, count: int, **settings: Any) -> Counter[str]:
        running = hub(**settings)
        for number in range(first, first + count):
            stamp = running.admit(admitted(number, temperature=0.7))
            assert stamp is not None
            send_tokens(worker, stamp, range(number % 7 + 1))
            running.finish(stamp.key, finished(number % 7 + 1))
        running.close()
        found = rows(tmp_path)
        return Counter(found[f"r{n}"].risk_basis for n in range(first, first + count) if f"r{n}" in found)

    assert serve(0, 40) == {"prior": 40}
    assert serve(40, 30) == {"prior": 20, "baseline": 10}, "the twenty still wanting, and those after them"
    assert serve(70, 10, risk_basis="prior") == {"prior": 10}
    assert serve(80, 10) == {"baseline": 10}
    # the baseline also learns from what is not kept
    assert not serve(90, 20, sample_rate=0.0)
    with contextlib.closing(sqlite3.connect(tmp_path / "corevital.db")) as connection:
        assert connection.execute("SELECT count(*) FROM baseline").fetchone()[0] == 100


def test_a_wrong_profile_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"COREVITAL_PROFILE: .*p\.json is not a corevital profile"):
        Hub(Settings(db=None, profile=tmp_path / "p.json"))


def test_a_request_runs_from_its_admission_until_its_row_is_there(
    hub: Callable[..., Hub], worker: FrameSender, tmp_path: Path
) -> None:
    running = hub()
    for number in range(20):
        assert not running.is_running(f"r{number}")
        stamp = running.admit(admitted(number))
        assert stamp is not None
        assert running.is_running(f"r{number}"), "although the hub's thread has not woken up"
        send_tokens(worker, stamp, range(2))
        running.finish(stamp.key, finished(2))
        while running.is_running(f"r{number}"):
            time.sleep(0.0005)
        assert f"r{number}" in rows(tmp_path)


class Answer:
    """A stand-in for an answer over HTTP, whose caller asked for the verdict."""

    def __init__(self) -> None:
        self.collector = Collector()

    def admit(self, hub: Hub, request: Admitted) -> Stamp | None:
        token = CURRENT.set(self.collector)
        try:
            return hub.admit(request)
        finally:
            CURRENT.reset(token)


def test_a_caller_who_asks_gets_the_verdict_before_frames_would_be_gathered(
    hub: Callable[..., Hub], worker: FrameSender
) -> None:
    running, answer = hub(), Answer()
    plain = running.admit(admitted(9))
    assert plain is not None
    assert not plain.urgent
    waits = []
    for number in range(5):
        answer = Answer()
        stamps = [answer.admit(running, admitted(number, sequence=n, verdict=True)) for n in (0, 1)]
        for stamp in stamps:
            assert stamp is not None
            assert stamp.urgent
            send_tokens(worker, stamp, range(4))
        time.sleep(0.06)  # the hub has read them
        begun = time.monotonic()
        for stamp in stamps:
            assert stamp is not None
            running.finish(stamp.key, finished(4))
        found = asyncio.run(answer.collector.verdicts(5))
        waits.append(time.monotonic() - begun)
        assert found is not None
        assert [one["index"] for one in found] == [0, 1]
    assert sorted(waits)[2] < 0.1, waits  # of a machine that may be busy; without load about 3 ms


def test_a_verdict_that_no_answer_waits_for_is_one_warning_and_no_failure(
    hub: Callable[..., Hub], worker: FrameSender, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    running = hub()
    for number in range(2):
        stamp = running.admit(admitted(number, verdict=True))
        assert stamp is not None
        assert not stamp.urgent
        running.finish(stamp.key, finished(0))
    (said,) = logged()
    assert "corevital_return is ignored (this request did not come to a Python API server)" in said.getMessage()


def test_a_caller_whose_request_is_not_measured_is_not_kept_waiting(hub: Callable[..., Hub]) -> None:
    answer = Answer()
    assert answer.admit(hub(), admitted(verdict=True, sample=False)) is None
    assert answer.collector.is_asked
    assert asyncio.run(answer.collector.verdicts(5)) is None
