"""Frames travel one way, bounded and without waiting; a killed process leaves nothing behind."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from corevital.frames import stamp
from corevital.frames.layout import ROW, SAMPLED, Frame, Source, encode
from corevital.frames.receiver import Receiver
from corevital.frames.sender import MAX_BYTES, FrameSender
from corevital.frames.stamp import Stamp

SOURCE = Source("vllm", "v1", "raw")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def sender() -> Iterator[FrameSender]:
    sender = FrameSender(SOURCE)
    yield sender
    sender.close()


def make_rows(*keys: int) -> np.ndarray:
    rows = np.zeros(len(keys), ROW)
    rows["key"] = keys
    return rows


def frames_of(receiver: Receiver) -> list[Frame]:
    return [message for message in receiver.messages() if isinstance(message, Frame)]


def raw(sender: FrameSender, server: str) -> zmq.Socket[bytes]:
    route, _ = sender._routes.to(server)
    assert route is not None
    return route.socket


def take(receiver: Receiver, count: int, timeout_s: float = 5.0) -> list[Frame]:
    frames: list[Frame] = []
    deadline = time.monotonic() + timeout_s
    while len(frames) < count and time.monotonic() < deadline:
        receiver.wait(0.1)
        frames += frames_of(receiver)
    return frames


def test_frames_arrive_in_order(receiver: Receiver, sender: FrameSender) -> None:
    for key in range(100):
        sender.send(receiver.server, make_rows(key))
    assert [int(frame.rows["key"][0]) for frame in take(receiver, 100)] == list(range(100))
    assert sender.dropped[receiver.server] == 0


def test_two_servers_do_not_mix(sender: FrameSender) -> None:
    one, two = Receiver(), Receiver()
    sender.send(one.server, make_rows(1))
    sender.send(two.server, make_rows(2))
    assert [int(frame.rows["key"][0]) for frame in take(one, 1)] == [1]
    assert [int(frame.rows["key"][0]) for frame in take(two, 1)] == [2]
    one.close()
    two.close()


def test_a_listener_that_does_not_listen_costs_records_and_never_time(receiver: Receiver, sender: FrameSender) -> None:
    rows = make_rows(*range(256))
    slowest = 0.0
    for _ in range(3000):
        start = time.perf_counter()
        sender.send(receiver.server, rows)
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 0.25, "a full way out is noticed, not waited for"
    dropped = sender.dropped[receiver.server]
    assert dropped > 0
    assert dropped % 256 == 0
    arrived = take(receiver, 3000 - dropped // 256)
    assert len(arrived) * 256 + dropped == 3000 * 256, "every record has arrived or is counted"
    sender.send(receiver.server, rows)
    assert take(receiver, 1)[-1].dropped == dropped, "the next frame says what was lost"


def test_what_is_not_a_frame_is_counted(receiver: Receiver, sender: FrameSender) -> None:
    raw(sender, receiver.server).send(b"not a frame")
    sender.send(receiver.server, make_rows(1))
    assert len(take(receiver, 1)) == 1
    assert receiver.malformed == 1


def test_frames_of_another_version_are_counted_and_logged_once(
    receiver: Receiver, sender: FrameSender, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    frame = encode(Frame(make_rows(1), np.empty(0, SAMPLED), SOURCE))
    for version in (1, 1, 3):
        raw(sender, receiver.server).send(frame[:4] + version.to_bytes(2, "little") + frame[6:])
    sender.send(receiver.server, make_rows(1))
    assert len(take(receiver, 1)) == 1
    assert (receiver.other_version, receiver.malformed) == (3, 0)
    (line,) = [record.getMessage() for record in logged()]
    assert line == (
        "frames dropped (a frame of version 1, expected 2): worker and server run different versions of corevital: "
        "restart both"
    )


def test_a_worker_that_has_seen_a_stamp_is_listened_to_and_no_other_process_is(
    receiver: Receiver, sender: FrameSender
) -> None:
    code = (
        "import sys, numpy as np; from corevital.frames.layout import ROW, Source;"
        "from corevital.frames.stamp import parse; from corevital.frames.sender import FrameSender;"
        "parse(sys.argv[2]); sender = FrameSender(Source('vllm', 'v1', 'raw'));"
        "rows = np.zeros(1, ROW); rows['key'] = int(sys.argv[3]); sender.send(sys.argv[1], rows);"
        "sender.close(); print(sender.dropped[sys.argv[1]])"
    )
    wrong = Stamp(receiver.server, 2, secret="0" * 64)
    for key, mark in ((1, Stamp(receiver.server, 1, secret=receiver.secret)), (2, wrong), (3, "")):
        command = [sys.executable, "-c", code, receiver.server, str(mark), str(key)]
        said = subprocess.run(command, timeout=60, check=True, capture_output=True, text=True).stdout
        assert said.strip() == ("1" if key == 3 else "0"), "without a secret there is no way out"
    sender.send(receiver.server, make_rows(4))
    assert [int(frame.rows["key"][0]) for frame in take(receiver, 2)] == [1, 4]
    assert receiver.refused > 0


def test_a_neighbour_that_knows_the_name_injects_nothing_and_is_counted(
    receiver: Receiver, sender: FrameSender
) -> None:
    """By name alone: without encryption, with its own key, and with rubbish."""
    address = f"ipc://@corevital-{receiver.server}"
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain, context.socket(zmq.DEALER) as keyed:
        keyed.curve_serverkey = zmq.curve_keypair()[0]
        keyed.curve_publickey, keyed.curve_secretkey = zmq.curve_keypair()
        for push in (plain, keyed):
            push.setsockopt(zmq.LINGER, 0)
            push.connect(address)
            push.send(encode(Frame(make_rows(1), np.empty(0, SAMPLED), SOURCE, 1, 2**64 - 1, 0.0)))
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as rubbish:
                rubbish.connect("\0" + address.removeprefix("ipc://@"))
                rubbish.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sender.send(receiver.server, make_rows(2))
        assert [int(frame.rows["key"][0]) for frame in take(receiver, 1)] == [2]
        deadline = time.monotonic() + 10
        while receiver.refused < 2 and time.monotonic() < deadline:
            assert take(receiver, 1, timeout_s=0.1) == []
    assert receiver.refused >= 2
    assert receiver.malformed == 0


def test_a_process_forgets_the_secret_of_a_server_that_has_ended() -> None:
    receiver = Receiver()
    assert stamp.secret_of(receiver.server) == receiver.secret
    receiver.close()
    assert stamp.secret_of(receiver.server) is None
    receiver.wake()  # its descriptor may be another file's by now


def test_a_table_too_large_for_one_frame_arrives_in_several(receiver: Receiver, sender: FrameSender) -> None:
    rows, sampled = make_rows(*range(5000)), np.zeros(5000, SAMPLED)
    sampled["key"] = range(5000)
    sender.send(receiver.server, rows, sampled)
    arrived = take(receiver, 6)
    assert all(len(encode(frame)) <= MAX_BYTES for frame in arrived)
    assert np.concatenate([frame.rows for frame in arrived]).tobytes() == rows.tobytes()
    assert np.concatenate([frame.sampled for frame in arrived]).tobytes() == sampled.tobytes()
    behind = [bool(len(frame.sampled)) for frame in arrived]
    assert behind == sorted(behind), "a token may take its row back: it comes after it"
    assert sender.dropped[receiver.server] == 0


def test_what_the_frame_thread_sends_together_is_one_frame(receiver: Receiver, sender: FrameSender) -> None:
    sender.send(receiver.server, make_rows(*range(1024)), np.zeros(1024, SAMPLED))
    assert len(take(receiver, 1)[0].rows) == 1024


def test_what_is_held_and_handed_out_is_bounded_in_bytes(receiver: Receiver, sender: FrameSender) -> None:
    rows = make_rows(*range(1200))
    for _ in range(300):
        sender.send(receiver.server, rows)
        time.sleep(0.001)
    before, total = resident_mib(), 0
    deadline = time.monotonic() + 20
    while total < 300:
        assert time.monotonic() < deadline
        receiver.wait(0.1)
        frames = frames_of(receiver)
        assert sum(frame.rows.nbytes for frame in frames) <= 16 << 20
        total += len(frames)
        del frames
    assert resident_mib() - before < 64
    frames_of(receiver)
    assert receiver.empty


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_server_that_is_gone_holds_nobody_up(sender: FrameSender) -> None:
    receiver = Receiver()
    receiver.close()
    start = time.perf_counter()
    for _ in range(1000):
        sender.send(receiver.server, make_rows(1))
    assert time.perf_counter() - start < 1.0
    assert sender.dropped[receiver.server] > 0


def test_what_is_lost_to_one_server_is_not_reported_to_another(receiver: Receiver, sender: FrameSender) -> None:
    sender.drop("f" * 32, 10)
    sender.drop(receiver.server, 3)
    sender.send(receiver.server, make_rows(1))
    assert take(receiver, 1)[0].dropped == 3


def test_servers_that_were_never_there_are_not_counted_for_ever(receiver: Receiver, sender: FrameSender) -> None:
    sender.send(receiver.server, make_rows(1))
    sender.drop(receiver.server, 3)
    for number in range(5000):
        sender.send(f"{number:032x}", make_rows(1))
    assert len(sender.dropped) <= 256
    assert sender.dropped[receiver.server] == 3
    assert len(sender._routes) == 1


def test_a_process_that_takes_a_gone_servers_name_gets_nothing(sender: FrameSender) -> None:
    receiver = Receiver()
    sender.send(receiver.server, make_rows(1))
    assert len(take(receiver, 1)) == 1
    receiver.close()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.bind(f"ipc://@corevital-{receiver.server}")
        for _ in range(5):
            sender.send(receiver.server, make_rows(2))
        assert stranger.poll(500) == 0


def test_an_oversized_message_is_not_taken_in(receiver: Receiver, sender: FrameSender) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.curve_serverkey = bytes.fromhex(receiver.secret)
        stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
        stranger.connect(f"ipc://@corevital-{receiver.server}")
        stranger.send(bytes(5 << 20))
        sender.send(receiver.server, make_rows(1))
        assert len(take(receiver, 1)) == 1
        assert take(receiver, 1, timeout_s=0.3) == []
        assert receiver.malformed == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_process_is_not_listened_to(receiver: Receiver, sender: FrameSender) -> None:
    send = (
        "import os, sys, zmq; os.setuid(65534); socket = zmq.Context().socket(zmq.DEALER);"
        "socket.curve_serverkey = bytes.fromhex(sys.argv[2]);"
        "socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair();"
        "socket.connect(sys.argv[1]); socket.send(b'x'); socket.close(500)"
    )
    address = f"ipc://@corevital-{receiver.server}"
    subprocess.run([sys.executable, "-c", send, address, receiver.secret], timeout=20, check=True)
    sender.send(receiver.server, make_rows(1))
    assert len(take(receiver, 1)) == 1
    assert receiver.malformed == 0


def test_wake_ends_a_wait(receiver: Receiver) -> None:
    receiver.wake()
    receiver.wake()
    start = time.perf_counter()
    receiver.wait(10)
    assert time.perf_counter() - start < 1.0
    receiver.wait(0.05)
    assert time.perf_counter() - start > 0.04, "one wait takes all wakes"


def test_killed_processes_leave_no_socket_and_no_file(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from corevital.frames.layout import Source\n"
        "from corevital.frames.receiver import Receiver; from corevital.frames.sender import FrameSender\n"
        "receiver = Receiver(); sender = FrameSender(Source('vllm', 'v1', 'raw')); sender.send(receiver.server)\n"
        "print(receiver.server, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        server = process.stdout.readline().strip()
        assert f"@corevital-{server}" in Path("/proc/net/unix").read_text()
        os.kill(process.pid, signal.SIGKILL)
    assert f"@corevital-{server}" not in Path("/proc/net/unix").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_neighbour_that_only_connects_keeps_no_worker_out(receiver: Receiver) -> None:
    """A full backlog refuses the first connection of a worker, which tries again."""
    name = f"\0corevital-{receiver.server}"
    until = time.monotonic() + 1.0

    def knock() -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as stranger:
                stranger.setblocking(False)
                stranger.connect(name)

    strangers = [threading.Thread(target=knock) for _ in range(3)]
    for stranger in strangers:
        stranger.start()
    workers = [FrameSender(SOURCE) for _ in range(8)]
    for number, worker in enumerate(workers):
        worker.send(receiver.server, make_rows(number))
    for stranger in strangers:
        stranger.join()
    frames = take(receiver, len(workers), 20.0)
    assert sorted(int(frame.rows["key"][0]) for frame in frames) == list(range(8))
    for worker in workers:
        worker.close()
