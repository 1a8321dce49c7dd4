"""Anything sent to the local socket: the hub stays within its bounds, and honest traffic is reported exactly."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zmq

from corevital.frames.layout import REJECTED, ROW, SAMPLED, Frame, Source, encode
from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.sender import MAX_BYTES, FrameSender
from corevital_otel.report import RequestReport
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings
from corevital_otel.store.content import Content

SOURCE = Source("vllm", "v1", "raw")
DROPPED = "corevital.telemetry.dropped"
SECONDS = 4.0
SEED = int(os.environ.get("COREVITAL_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
"""Named in the failure's output; set the variable to run the same again."""


class Honest:
    """A worker and its requests, whose reports are known."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.worker, self.count = hub, FrameSender(SOURCE), 0
        self.expected: dict[str, int] = {}

    def serve(self, tokens: int) -> None:
        self.count += 1
        request_id = f"honest-{self.count}"
        admitted = Admitted(request_id=request_id, engine_id="e", sequence=0, operation="chat", model="m",
                            arrival_ns=time.time_ns(), prompt_tokens=1)  # fmt: skip
        stamp = self.hub.admit(admitted)
        assert stamp is not None
        rows, sampled = np.zeros(tokens, ROW), np.zeros(tokens, SAMPLED)
        for table in (rows, sampled):
            table["key"], table["index"] = stamp.key, range(tokens)
        rows["entropy"], rows["vocab"], rows["topk_logprobs"] = np.log(2), 100, -3.0
        sampled["token"], sampled["logprob"] = range(tokens), -1.0
        self.worker.send(stamp.server, rows, sampled)
        self.hub.finish(stamp.key, Finished(reason="stop", token_ids=range(tokens), end_ns=time.time_ns()))
        self.expected[request_id] = tokens


class Stranger:
    """Knows the name of the socket, and no secret."""

    def __init__(self, hub: Hub, chance: random.Random) -> None:
        self.address, self.chance = f"corevital-{hub._receiver.server}", chance
        self.context = zmq.Context()

    def act(self) -> None:
        self.chance.choice((self.raw, self.plain, self.curve))()

    def raw(self) -> None:
        """Bytes, some of which begin as ZeroMQ's do."""
        begin = self.chance.choice((b"", b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE", b"\xff" + bytes(8) + b"\x7f\x03"))
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(1)
            try:
                peer.connect("\0" + self.address)
                peer.sendall(begin + self.chance.randbytes(self.chance.randrange(2000)))
            except OSError:
                pass

    def plain(self) -> None:
        self.send(self.context.socket(zmq.DEALER))

    def curve(self) -> None:
        push = self.context.socket(zmq.DEALER)
        push.curve_serverkey = zmq.curve_keypair()[0]
        push.curve_publickey, push.curve_secretkey = zmq.curve_keypair()
        self.send(push)

    def send(self, push: zmq.Socket[bytes]) -> None:
        with push:
            push.setsockopt(zmq.LINGER, 20)
            push.connect(f"ipc://@{self.address}")
            rows = np.zeros(3, ROW)
            rows["nan_count"] = 1
            push.send(encode(Frame(rows, np.empty(0, SAMPLED), SOURCE, 1, 2**64 - 1, 0.0)))
            time.sleep(0.01)


class Mad:
    """A worker of this server that sends anything."""

    def __init__(self, hub: Hub, chance: random.Random) -> None:
        self.hub, self.chance = hub, chance
        self.bytes = np.random.default_rng(chance.getrandbits(32))
        self.keys: list[int] = []
        self.context = zmq.Context()
        self.push = self.context.socket(zmq.DEALER)
        self.push.setsockopt(zmq.LINGER, 0)
        self.push.curve_serverkey = bytes.fromhex(hub._receiver.secret)
        self.push.curve_publickey, self.push.curve_secretkey = zmq.curve_keypair()
        self.push.connect(f"ipc://@corevital-{hub._receiver.server}")

    def act(self) -> None:
        self.chance.choice((self.live, self.wild, self.wild, self.mutated, self.huge))()

    def live(self) -> None:
        """A sequence that its frames are about, and maybe its end."""
        text = self.chance.choice(("x" * 5000, "\udcff\x1b[2J\n", "ok"))
        admitted = Admitted(request_id=f"mad-{text}", engine_id=text, sequence=0, operation=text, model=text,
                            arrival_ns=self.chance.choice((0, 2**62, -1)), prompt_tokens=1, tags=(text,) * 30,
                            temperature=float("nan"), seed=2**70)  # fmt: skip
        stamp = self.hub.admit(admitted)
        if stamp is None:
            return
        self.keys.append(stamp.key)
        if len(self.keys) > 8:
            tokens = self.chance.choice(((), (1, 2), (2**40,), (-5,) * 300, tuple(range(100))))
            self.hub.finish(
                self.keys.pop(0), Finished(reason=text, token_ids=tokens, end_ns=self.chance.choice((0, 9)))
            )

    def frame(self) -> Frame:
        count = self.chance.randrange(1, 60)
        # every bit pattern, on records of sequences that there are and others
        rows = np.frombuffer(self.bytes.bytes(count * ROW.itemsize), ROW).copy()
        sampled = np.frombuffer(self.bytes.bytes(count * SAMPLED.itemsize), SAMPLED).copy()
        for table in (rows, sampled):
            if self.keys and self.chance.random() < 0.8:
                table["key"] = [self.chance.choice(self.keys) for _ in range(count)]
            index = [self.chance.choice((0, 1, 40, 72, 8191, 8192, 2**31, 2**32 - 1, at)) for at in range(count)]
            table["index"] = range(count) if self.chance.random() < 0.5 else index
        if self.chance.random() < 0.5:
            rows["vocab"] = self.chance.choice((0, 1, 2**32 - 1))
            sampled["token"] = self.chance.choice((REJECTED, 0, -(2**31), 2**31 - 1))
        lost = self.chance.choice((0, 1, 2**32, 2**63, 2**64 - 1))
        sender = self.chance.getrandbits(64)
        sent_at = self.chance.choice((float("nan"), float("-inf"), 1e308, 0.0))
        source = Source("vllm", self.chance.choice(("v1", "mrv2", "unknown")), "raw")
        return Frame(rows, sampled, source, sender, lost, sent_at)

    def send(self, data: bytes) -> None:
        try:
            self.push.send(data, zmq.NOBLOCK)
        except zmq.Again:
            time.sleep(0.01)

    def wild(self) -> None:
        self.send(encode(self.frame()))

    def mutated(self) -> None:
        data = bytearray(encode(self.frame()))
        for _ in range(self.chance.randrange(1, 8)):
            data[self.chance.randrange(64 if self.chance.random() < 0.7 else len(data))] = self.chance.randrange(256)
        if self.chance.random() < 0.3:
            struct.pack_into("<II", data, 8, self.chance.getrandbits(32), self.chance.getrandbits(32))
        if self.chance.random() < 0.2:
            struct.pack_into("<H", data, 4, self.chance.choice((0, 1, 3, 2**16 - 1)))
        if self.chance.random() < 0.3:
            del data[self.chance.randrange(len(data)) :]
        self.send(bytes(data))

    def huge(self) -> None:
        self.send(bytes(self.chance.choice((0, 1, 39, 40, MAX_BYTES))))


def resident_mib() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_nothing_sent_to_the_socket_costs_an_honest_report(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    faults: list[Any] = []
    monkeypatch.setattr("threading.excepthook", faults.append)
    chance = random.Random(SEED)
    hub, reports = Hub(Settings(db=None, capture="full"), "m"), []
    put: Callable[..., Any] = hub._outputs.put

    def seen(report: RequestReport, content: Content | None = None) -> None:
        reports.append(report)
        put(report, content)

    hub._outputs.put = seen  # type: ignore[method-assign]
    hub.start()
    honest, stranger, mad = Honest(hub), Stranger(hub, chance), Mad(hub, chance)
    before, end = resident_mib(), time.monotonic() + SECONDS
    while time.monotonic() < end:
        honest.serve(chance.randrange(1, 80))
        for _ in range(4):
            mad.act()
        if chance.random() < 0.2:
            stranger.act()
    grown = resident_mib() - before
    assert hub.drain(20), f"seed {SEED}"
    assert hub._thread.is_alive()
    assert not faults, f"seed {SEED}"
    mine = {r.admitted.request_id: r for r in reports if r.admitted.request_id.startswith("honest")}
    assert {name: report.features.tokens for name, report in mine.items()} == honest.expected, f"seed {SEED}"
    for report in mine.values():
        flagged = report.health.nan_detected, report.health.inf_detected, report.incomplete
        assert (flagged, report.features.entropy_mean) == ((False,) * 3, pytest.approx(1.0)), f"seed {SEED}"
    assert hub.counters.get(DROPPED, what="frame", why="malformed") > 0
    assert hub.counters.get(DROPPED, what="frame", why="version") > 0
    assert hub.counters.get(DROPPED, what="frame", why="unauthenticated") > 0
    assert all(0 <= count < 2**63 for count in hub.counters.snapshot().values())
    assert grown < 300, f"seed {SEED}"
    for part in (honest.worker, hub):
        part.close()
    for peer in (mad, stranger):
        peer.context.destroy(0)
