"""Tables leave in order, from a thread of their own, and the engine's thread never waits."""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from corevital.engines.courier import Courier
from corevital.engines.occupants import Occupants
from corevital.engines.steps import Step, Stretch, Table
from corevital.frames.record import REJECTED, ROW
from corevital.frames.stamp import Stamp


class Slow:
    """A sender that takes its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.dropped, self.closed = seconds, 0, False
        self.sent: list[int] = []
        self.tokens: list[int] = []
        self.frames = 0
        self.threads: set[int] = set()

    def send(self, server: str, rows: Any = (), sampled: Any = ()) -> None:
        time.sleep(self.seconds)
        self.threads.add(threading.get_ident())
        self.frames += 1
        self.sent += rows["index"].tolist() if len(rows) else []
        self.tokens += sampled["token"].tolist() if len(sampled) else []

    def drop(self, server: str, records: int) -> None:
        self.dropped += records

    def close(self) -> None:
        self.closed = True


class Event:
    """A copy that is done when it is told to be."""

    def __init__(self) -> None:
        self.set = False

    def query(self) -> bool:
        return self.set


OCCUPANTS = Occupants.of([Stamp("0" * 32, 7)], [1.0])
CROWD = Occupants.of([Stamp("0" * 32, key) for key in range(12)], [1.0] * 12)


def step(index: int, done: Any = None, rows: int = 1) -> Step:
    table = np.zeros(rows, ROW)
    table["index"] = index
    words = torch.from_numpy(table.view("<i4").reshape(rows, -1))
    return Step(Table(words, done), ([0] * rows, [index] * rows), OCCUPANTS)


def told(tokens: list[int]) -> Stretch:
    """Tokens, and no logits of theirs."""
    table = np.zeros((len(tokens), 3), np.int32)
    table[:, 0] = tokens
    return Stretch(table, 0, len(tokens))


def drafted(index: int) -> Step:
    """A row, and that of a draft for the next index."""
    made = step(index, rows=2)
    made.where = ([0, 0], [index, index + 1])
    return made


def settle(courier: Courier, step: Step, token: int) -> None:
    step.tokens = told([token])
    courier.post(step)


def wait_for(sender: Slow, count: int) -> None:
    deadline = time.monotonic() + 5
    while len(sender.sent) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_is_posted_is_sent_in_order_and_not_by_the_poster() -> None:
    sender = Slow()
    courier = Courier(sender)
    for index in range(50):
        courier.post(made := step(index))
        settle(courier, made, 100 + index)
    wait_for(sender, 50)
    assert sender.sent == list(range(50))
    assert sender.tokens == list(range(100, 150))
    assert sender.frames == 2  # 32 rows at most in one
    assert threading.get_ident() not in sender.threads
    courier.close()
    assert sender.closed


def test_no_frame_holds_more_rows_of_a_sequence_than_the_other_end_keeps_open() -> None:
    sender = Slow()
    courier = Courier(sender)
    for index in range(10):
        courier.post(made := step(index, rows=5))
        made.tokens = told([7] * 5)
        courier.post(made)
    wait_for(sender, 50)
    assert sender.frames == 2  # 6 steps of 5 rows, and 4


def test_drafts_of_many_sequences_are_counted_by_sequence() -> None:
    sender = Slow()
    courier = Courier(sender)
    for index in range(5):
        made = step(4 * index, rows=48)
        made.where = ([row // 4 for row in range(48)], [4 * index + row % 4 for row in range(48)])
        made.occupants = CROWD
        courier.post(made)
        made.tokens = told([7] * 48)
        courier.post(made)
    wait_for(sender, 240)
    assert sender.frames == 1, "20 rows of each"
    courier.close()


def test_a_row_that_is_taken_back_takes_no_later_one_with_it() -> None:
    sender = Slow()
    courier = Courier(sender)
    for made, tokens in ((drafted(4), [7, REJECTED]), (drafted(5), [8, REJECTED])):
        courier.post(made)
        made.tokens = told(tokens)
        courier.post(made)
    wait_for(sender, 2)
    assert (sender.frames, sender.sent, sender.tokens) == (1, [4, 5], [7, 8])

    courier.post(late := drafted(6))
    wait_for(sender, 4)
    assert sender.sent[2:] == [6, 7], "as they were seen"
    late.tokens = told([9, REJECTED])
    courier.post(late)
    courier.post(after := drafted(7))
    after.tokens = told([10, 11])
    courier.post(after)
    wait_for(sender, 6)
    assert (sender.frames, sender.tokens[2:]) == (4, [9, REJECTED, 10, 11]), "the one taken back before the next comes"
    courier.close()


def test_a_copy_under_way_is_waited_for_without_a_next_step_and_nothing_overtakes_it() -> None:
    sender, event = Slow(), Event()
    courier = Courier(sender)
    courier.post(step(1, event))
    courier.post(step(2))
    time.sleep(0.05)
    assert sender.sent == []
    event.set = True
    wait_for(sender, 2)
    assert sender.sent == [1, 2]
    courier.close()


def test_rows_whose_tokens_are_long_in_coming_go_before_them() -> None:
    sender = Slow()
    courier = Courier(sender)
    courier.post(early := step(1))
    courier.post(late := step(2))
    settle(courier, early, 101)
    wait_for(sender, 2)
    assert (sender.sent, sender.tokens) == ([1, 2], [101])
    settle(courier, late, 102)
    deadline = time.monotonic() + 5
    while sender.tokens != [101, 102]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert sender.sent == [1, 2]  # once
    courier.close()


def test_a_full_queue_drops_and_counts_and_never_blocks() -> None:
    sender, event = Slow(), Event()
    courier = Courier(sender)
    start, spent = time.monotonic(), time.thread_time()
    for index in range(3000):
        courier.post(step(index, event))
    assert time.thread_time() - spent < 1, "of this thread alone: a busy machine makes it no longer"
    assert time.monotonic() - start < 10, "a wait of 4 ms for each would be over it"
    assert sender.dropped >= 1900
    event.set = True
    wait_for(sender, 3000 - sender.dropped)
    courier.close()


def test_a_table_that_fails_holds_up_none_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Event):
        def query(self) -> bool:
            raise RuntimeError("device lost")

    monkeypatch.setenv("COREVITAL_RAISE", "0")
    sender = Slow()
    courier = Courier(sender)
    courier.post(step(1, Broken()))
    courier.post(step(2))
    wait_for(sender, 1)
    assert sender.sent == [2]
    courier.close()


def test_a_copy_that_never_ends_does_not_hold_up_the_end_of_the_process() -> None:
    courier = Courier(Slow())
    courier.post(step(1, Event()))
    start = time.monotonic()
    courier.close()
    assert time.monotonic() - start < 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_that_ends_sends_what_it_has() -> None:
    heard, told = multiprocessing.Pipe(duplex=False)

    class Told(Slow):
        def close(self) -> None:
            told.send(self.sent)

    def engine() -> None:
        Courier(Told()).post(step(3))

    process = multiprocessing.get_context("fork").Process(target=engine)
    process.start()
    process.join(20)
    assert heard.poll()
    assert heard.recv() == [3]
