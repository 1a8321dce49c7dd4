"""The hub process: one a host, restarted, ended with its engine; and what it forwards for other hosts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.harness.processes import free_port, within

from corevital.frames import engine_key as keys
from corevital.frames import stamp as stamps
from corevital.frames import wire
from corevital.frames.engine_key import engine_key
from corevital.frames.layout import ROW, Frame, Source
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital.frames.receiver import Letter, Receiver, Transit
from corevital.frames.remote_hub import RemoteHub
from corevital.frames.sender import FrameSender
from corevital.frames.stamp import Stamp
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.service.keeper import IN_USE, HubKeeper, is_of_this_host, take
from corevital_otel.service.relay import Relay
from corevital_otel.store.reader import StoreReader

ENGINE = {"engine.name": "vllm", "engine.version": "0.32.0", "engine.runner": "v1"}


@pytest.fixture(autouse=True)
def _own_deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", keys.HUB, keys.HUB_KEY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(keys.VARIABLE, os.urandom(32).hex())
    monkeypatch.setenv("COREVITAL_DB", str(tmp_path / "corevital.db"))
    monkeypatch.setenv("COREVITAL_HTTP", f"127.0.0.1:{free_port()}")


@pytest.fixture
def keeper() -> Iterator[HubKeeper]:
    keeper = HubKeeper("tiny", ENGINE, "numba")
    yield keeper
    keeper.close()


def hubs(server: str) -> list[int]:
    """Processes that run the hub of this deployment: those that listen under its name."""
    name = f"@corevital-{server}"
    inodes = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(name)}
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.removeprefix("socket:[").rstrip("]") in inodes:
            found.add(int(link.parts[2]))
    return sorted(found)


@pytest.mark.slow
def test_a_hub_is_started_once_restarted_and_ended(keeper: HubKeeper) -> None:
    server = engine_key().hub.server
    second = HubKeeper("tiny", ENGINE, "numba")
    for each in (keeper, keeper, second):
        each.start()
    (first_hub,) = within(30, lambda: hubs(server))
    os.kill(first_hub, signal.SIGKILL)
    (other_hub,) = within(30, lambda: [hub for hub in hubs(server) if hub != first_hub])
    keeper.close()
    (third_hub,) = within(30, lambda: [hub for hub in hubs(server) if hub not in (first_hub, other_hub)])
    assert hubs(server) == [third_hub], "the second keeper took over"
    second.close()
    within(10, lambda: not hubs(server))


@pytest.mark.slow
@pytest.mark.parametrize("taken", [False, True])
def test_a_start_waits_until_the_hub_listens_or_has_failed(monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        other.listen() if taken else other.close()
        monkeypatch.setenv(keys.HUB, f"tcp://127.0.0.1:{port}")
        monkeypatch.setenv(keys.HUB_KEY, "a long shared secret")
        keeper = HubKeeper("tiny", ENGINE, "numba")
        try:
            keeper.start()
            keeper.wait(0.0)
            assert not hubs(engine_key().hub.server), "it takes longer than that"
            began = time.monotonic()
            keeper.wait(60.0)
            assert time.monotonic() - began < 30
            assert bool(hubs(engine_key().hub.server)) != taken
        finally:
            keeper.close()


@pytest.mark.slow
def test_a_hub_outlives_a_killed_engine_by_no_more_than_its_last_reports() -> None:
    server = engine_key().hub.server
    code = (
        "import sys, json, time; from corevital_otel.service.keeper import HubKeeper;"
        "HubKeeper('tiny', json.loads(sys.argv[1]), 'numba').start(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, json.dumps(ENGINE)]) as engine:
        within(30, lambda: hubs(server))
        engine.kill()
    within(15, lambda: not hubs(server))


@pytest.mark.slow
def test_an_address_in_use_is_one_line_and_no_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv(keys.HUB, f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv(keys.HUB_KEY, "a long shared secret")
        given = json.dumps({"model": "tiny", "engine": ENGINE, "kernel": "numba"}) + "\n"
        command = [sys.executable, "-m", "corevital_otel.service.hub_process"]
        ended = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == IN_USE
    (line,) = ended.stderr.splitlines()
    assert "the hub cannot listen on tcp://127.0.0.1" in line
    assert "COREVITAL_HUB" in line


def test_addresses_of_this_host_are_known() -> None:
    assert is_of_this_host("tcp://127.0.0.1:5760")
    assert is_of_this_host("tcp://localhost:5760")
    assert not is_of_this_host("tcp://192.0.2.1:5760")
    assert not is_of_this_host("tcp://nowhere.invalid:5760")


@pytest.fixture
def over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.HUB, f"tcp://127.0.0.1:{free_port()}")
    monkeypatch.setenv(keys.HUB_KEY, "a long shared secret")


def frame_rows(key: int) -> np.ndarray:
    rows = np.zeros(1, ROW)
    rows["key"] = key
    return rows


def frames(receiver: Receiver, count: int) -> list[Frame]:
    found: list[Frame] = []

    def look() -> bool:
        receiver.wait(0.05)
        found.extend(message for message in receiver.messages() if isinstance(message, Frame))
        return len(found) >= count

    within(10, look)
    return found


def test_frames_reach_the_hub_by_tcp(over_tcp: None) -> None:
    hub = Receiver(wire.remember_hub())
    worker = FrameSender(Source("vllm", "v1", "raw"))
    try:
        worker.send(hub.server, frame_rows(7))
        assert int(frames(hub, 1)[0].rows["key"][0]) == 7
    finally:
        worker.close()
        hub.close()


def test_a_neighbour_without_the_key_is_refused_on_tcp(over_tcp: None, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Receiver(engine_key().hub)
    with monkeypatch.context() as stranger:
        stranger.setenv(keys.HUB_KEY, "another shared secret")
        other = wire.remember_hub()
        worker = FrameSender(Source("vllm", "v1", "raw"))
        worker.send(other.server, frame_rows(7))
    deadline = time.monotonic() + 10
    while hub.refused == 0 and time.monotonic() < deadline:
        hub.wait(0.05)
        assert list(hub.messages()) == []
    worker.close()
    hub.close()
    assert hub.refused > 0


def test_what_is_for_a_frontend_of_the_hubs_host_is_passed_on(over_tcp: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from another host, where the frontend's socket does not exist."""
    is_here = wire.is_here
    monkeypatch.setattr(wire, "is_here", lambda server: False)
    hub, frontend = Receiver(engine_key().hub), Receiver()
    stamp = stamps.parse(str(Stamp(frontend.server, 5, secret=frontend.secret, proof=frontend.proof)))
    assert stamp is not None
    wire.remember_hub()
    worker, core = FrameSender(Source("vllm", "v1", "raw")), RemoteHub()
    relay = Relay(Counters())
    try:
        worker.send(stamp.server, frame_rows(5))
        core.facts(stamp, CoreFacts(queue_s=1.0))
        passed: list[Transit] = []

        def pass_on() -> bool:
            hub.wait(0.05)
            for message in hub.messages():
                assert isinstance(message, Transit)
                passed.append(message)
            return len(passed) >= 2

        within(10, pass_on)
        with monkeypatch.context() as here:
            here.setattr(wire, "is_here", is_here)
            for message in passed:
                relay.pass_on(message)
        arrived: list[Any] = []

        def look() -> bool:
            frontend.wait(0.05)
            arrived.extend(frontend.messages())
            return len(arrived) >= 2

        within(10, look)
    finally:
        for each in (core, worker, relay, hub, frontend):
            each.close()
    assert {type(message) for message in arrived} == {Frame, Letter}


def test_what_is_for_a_frontend_elsewhere_is_counted_and_logged_once(logged: Callable[[], list[Any]]) -> None:
    counters = Counters()
    relay = Relay(counters)
    for _ in range(3):
        relay.pass_on(Transit("d" * 32, "e" * 64, [b"x"]))
    relay.close()
    assert counters.lost(Loss.FRAME_UNREACHABLE) == 3
    assert len(logged()) == 1


@pytest.mark.slow
def test_the_command_runs_a_hub_until_it_is_stopped(over_tcp: None, tmp_path: Path) -> None:
    server = engine_key().hub.server
    command = [sys.executable, "-m", "corevital_otel.cli", "hub"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        within(30, lambda: hubs(server))
        core = RemoteHub()
        stamp = core.admit(
            Admitted(
                request_id="r",
                engine_id="e",
                sequence=0,
                operation="chat",
                model="m",
                arrival_ns=time.time_ns(),
                prompt_tokens=1,
            )
        )
        assert stamp is not None
        core.finish(stamp.key, Finished(reason="stop", token_ids=(), end_ns=time.time_ns()))
        assert core.drain(15)
        core.close()
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert "runs on this host already" in second.stderr
        with socket.socket(socket.AF_UNIX) as lock:
            assert not take(lock, server), "an engine's keeper waits for this hub to end"
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(15) == 0
    assert "listens on tcp://127.0.0.1" in said
    assert "metrics and reports at http://127.0.0.1" in said
    assert [row.request_id for row in StoreReader(tmp_path / "corevital.db").list_reports(limit=10)] == ["r"]


def test_the_command_needs_an_address() -> None:
    command = [sys.executable, "-m", "corevital_otel.cli", "hub"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "COREVITAL_HUB is not set" in ended.stderr


GIVEN = {"model": "tiny", "engine": ENGINE, "kernel": "numba"}
COMMAND = [sys.executable, "-m", "corevital_otel.service.hub_process"]


@pytest.mark.slow
def test_a_hub_that_is_terminated_ends_in_order() -> None:
    server = engine_key().hub.server
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as hub:
        assert hub.stdin is not None
        assert hub.stderr is not None
        hub.stdin.write(f"{json.dumps(GIVEN)}\n".encode())
        hub.stdin.flush()
        within(30, lambda: hubs(server))
        hub.terminate()
        assert hub.wait(15) == 0
        assert b"Fatal" not in hub.stderr.read()


def test_a_hub_whose_engine_has_ended_before_it_sent_its_line_ends_too() -> None:
    ended = subprocess.run(COMMAND, input="", capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
def test_an_address_in_use_is_logged_once(over_tcp: None, capfd: pytest.CaptureFixture[str]) -> None:
    hub = Receiver(engine_key().hub)
    try:
        for quiet, lines in ((False, 1), (True, 0)):
            given = f"{json.dumps({**GIVEN, 'quiet': quiet})}\n"
            ended = subprocess.run(COMMAND, input=given, capture_output=True, text=True, timeout=60, check=False)
            assert ended.returncode == IN_USE
            assert len(ended.stderr.splitlines()) == lines
    finally:
        hub.close()


@pytest.mark.slow
def test_a_fork_of_the_engine_keeps_no_hub_from_its_reports(
    keeper: HubKeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork holds the hub's input open, and the folder has a module that is not ours."""
    (tmp_path / "json.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    ends: list[int] = []
    run = keeper._run

    def noted() -> int:
        ends.append(run())
        return ends[-1]

    monkeypatch.setattr(keeper, "_run", noted)
    keeper.start()
    within(30, lambda: hubs(engine_key().hub.server))
    if not (fork := os.fork()):
        time.sleep(60)
        os._exit(0)
    try:
        keeper.close()
    finally:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)
    assert ends == [0]


@pytest.mark.slow
def test_an_engine_that_kills_its_descendants_leaves_the_hub_to_report(keeper: HubKeeper) -> None:
    """As vLLM does when it stops."""
    server = engine_key().hub.server
    keeper.start()
    (hub,) = within(30, lambda: hubs(server))
    above = hub
    while above > 1:
        assert above != os.getpid(), "it is a descendant"
        above = int(Path(f"/proc/{above}/stat").read_text().rpartition(")")[2].split()[1])
    keeper.close()
    within(10, lambda: not hubs(server))


@pytest.mark.slow
def test_a_hub_that_stands_still_is_killed_at_the_end(keeper: HubKeeper) -> None:
    server = engine_key().hub.server
    keeper.start()
    (hub,) = within(30, lambda: hubs(server))
    os.kill(hub, signal.SIGSTOP)
    begun = time.monotonic()
    keeper.close()
    assert time.monotonic() - begun < 7
    within(5, lambda: not hubs(server))
