"""Tables leave in order, from a separate thread, and the engine's thread never waits."""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from corevital.frames.layout import REJECTED, ROW
from corevital.frames.stamp import Stamp
from corevital.steps.frame_thread import FrameThread
from corevital.steps.slots import Owners
from corevital.steps.step import SampledStep, Step, Stretch, Table


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
    """A copy that is done when a test sets it."""

    def __init__(self) -> None:
        self.set = False

    def query(self) -> bool:
        return self.set


OWNERS = Owners.of([Stamp("0" * 32, 7)], [1.0])
CROWD = Owners.of([Stamp("0" * 32, key) for key in range(12)], [1.0] * 12)


def step(index: int, done: Any = None, rows: int = 1, where: Any = None, owners: Owners = OWNERS) -> Step:
    table = np.zeros(rows, ROW)
    table["index"] = index
    words = torch.from_numpy(table.view("<i4").reshape(rows, -1))
    return Step(Table(words, done), where or ([0] * rows, [index] * rows), owners)


def sampled(step: Step, tokens: list[int]) -> SampledStep:
    """The step's tokens, and no logits of theirs."""
    table = np.zeros((len(tokens), 3), np.int32)
    table[:, 0] = tokens
    return SampledStep(step, Stretch(table, 0, len(tokens)))


def drafted(index: int) -> Step:
    """A row, and that of a draft for the next index."""
    return step(index, rows=2, where=([0, 0], [index, index + 1]))


def wait_for(sender: Slow, count: int, within_s: float = 5) -> None:
    deadline = time.monotonic() + within_s
    while len(sender.sent) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_is_posted_is_sent_in_order_and_not_by_the_poster() -> None:
    sender = Slow()
    frame_thread = FrameThread(sender)
    for index in range(50):
        frame_thread.post(made := step(index))
        frame_thread.post(sampled(made, [100 + index]))
    wait_for(sender, 50)
    assert sender.sent == list(range(50))
    assert sender.tokens == list(range(100, 150))
    assert sender.frames == 2  # 32 rows at most in one
    assert threading.get_ident() not in sender.threads
    frame_thread.close()
    assert sender.closed


def test_no_frame_holds_more_rows_of_a_sequence_than_the_other_end_keeps_open() -> None:
    sender = Slow()
    frame_thread = FrameThread(sender)
    for index in range(10):
        frame_thread.post(made := step(index, rows=5))
        frame_thread.post(sampled(made, [7] * 5))
    wait_for(sender, 50)
    assert sender.frames == 2  # 6 steps of 5 rows, and 4


def test_drafts_of_many_sequences_are_counted_by_sequence() -> None:
    sender = Slow()
    frame_thread = FrameThread(sender)
    for index in range(5):
        where = [row // 4 for row in range(48)], [4 * index + row % 4 for row in range(48)]
        made = step(4 * index, rows=48, where=where, owners=CROWD)
        frame_thread.post(made)
        frame_thread.post(sampled(made, [7] * 48))
    wait_for(sender, 240)
    assert sender.frames == 1, "20 rows of each"
    frame_thread.close()


def test_a_row_that_is_taken_back_takes_no_later_one_with_it() -> None:
    sender = Slow()
    frame_thread = FrameThread(sender)
    for made, tokens in ((drafted(4), [7, REJECTED]), (drafted(5), [8, REJECTED])):
        frame_thread.post(made)
        frame_thread.post(sampled(made, tokens))
    wait_for(sender, 2)
    assert (sender.frames, sender.sent, sender.tokens) == (1, [4, 5], [7, 8])

    frame_thread.post(late := drafted(6))
    wait_for(sender, 4)
    assert sender.sent[2:] == [6, 7], "as they were seen"
    frame_thread.post(sampled(late, [9, REJECTED]))
    frame_thread.post(after := drafted(7))
    frame_thread.post(sampled(after, [10, 11]))
    wait_for(sender, 6)
    assert (sender.frames, sender.tokens[2:]) == (4, [9, REJECTED, 10, 11]), "the one taken back before the next comes"
    frame_thread.close()


def test_a_copy_under_way_is_waited_for_without_a_next_step_and_nothing_overtakes_it() -> None:
    sender, event = Slow(), Event()
    frame_thread = FrameThread(sender)
    frame_thread.post(step(1, event))
    frame_thread.post(step(2))
    time.sleep(0.05)
    assert sender.sent == []
    event.set = True
    wait_for(sender, 2)
    assert sender.sent == [1, 2]
    frame_thread.close()


def test_rows_whose_tokens_come_late_are_sent_first() -> None:
    sender = Slow()
    frame_thread = FrameThread(sender)
    frame_thread.post(early := step(1))
    frame_thread.post(late := step(2))
    frame_thread.post(sampled(early, [101]))
    wait_for(sender, 2)
    assert (sender.sent, sender.tokens) == ([1, 2], [101])
    frame_thread.post(sampled(late, [102]))
    deadline = time.monotonic() + 5
    while sender.tokens != [101, 102]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert sender.sent == [1, 2]  # once
    frame_thread.close()


def test_a_full_queue_drops_and_counts_and_never_blocks() -> None:
    sender, event = Slow(), Event()
    frame_thread = FrameThread(sender)
    start, spent = time.monotonic(), time.thread_time()
    for index in range(3000):
        frame_thread.post(step(index, event))
    assert time.thread_time() - spent < 1, "of this thread alone: a busy machine makes it no longer"
    assert time.monotonic() - start < 10, "a wait of 4 ms for each would be over it"
    assert sender.dropped >= 1900
    event.set = True
    wait_for(sender, 3000 - sender.dropped)
    frame_thread.close()


def test_a_table_that_fails_holds_up_none_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Event):
        def query(self) -> bool:
            raise RuntimeError("device lost")

    monkeypatch.setenv("COREVITAL_RAISE", "0")
    sender = Slow()
    frame_thread = FrameThread(sender)
    frame_thread.post(step(1, Broken()))
    frame_thread.post(step(2))
    wait_for(sender, 1)
    assert sender.sent == [2]
    frame_thread.close()


def test_a_copy_that_never_ends_does_not_hold_up_the_end_of_the_process() -> None:
    frame_thread = FrameThread(Slow())
    frame_thread.post(step(1, Event()))
    start = time.monotonic()
    frame_thread.close()
    assert time.monotonic() - start < 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_that_ends_sends_what_it_has() -> None:
    receives, reports = multiprocessing.Pipe(duplex=False)

    class Reporting(Slow):
        def close(self) -> None:
            reports.send(self.sent)

    def engine() -> None:
        FrameThread(Reporting()).post(step(3))

    process = multiprocessing.get_context("fork").Process(target=engine)
    process.start()
    process.join(20)
    assert receives.poll()
    assert receives.recv() == [3]
