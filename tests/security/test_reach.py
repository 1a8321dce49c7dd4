"""What a container beside the server can reach, and what the store's file gives to who has it."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.receiver import Receiver
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings

IN_ANOTHER_CONTAINER = ["unshare", "-rn"]
"""A network namespace with nothing in it, as a container has where it does not share that of the host or of a pod."""
CONNECT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as one:
    try:
        one.connect("\\0" + sys.argv[1])
        print("connected")
    except ConnectionRefusedError:
        print("refused")
"""


@pytest.mark.skipif(
    subprocess.run([*IN_ANOTHER_CONTAINER, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine makes no network namespaces for this user",
)
def test_another_network_namespace_does_not_see_the_socket_for_frames() -> None:
    receiver = Receiver()
    command = [sys.executable, "-c", CONNECT, f"corevital-{receiver.server}"]
    try:
        beside = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        apart = subprocess.run(
            [*IN_ANOTHER_CONTAINER, *command], capture_output=True, text=True, timeout=30, check=True
        )
    finally:
        receiver.close()
    assert (beside.stdout, apart.stdout) == ("connected\n", "refused\n")


def test_a_hub_without_settings_listens_on_no_network_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the socket for frames, which has no network address."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    hub = Hub(Settings(db=tmp_path / "corevital.db"), "tiny")
    before = _listening()
    hub.start()
    assert _listening() == before
    with socket.create_server(("127.0.0.1", 0)):
        assert len(_listening() - before) == 1, "one that listens is seen"
    hub.close()


def _listening() -> set[str]:
    """Inodes of this process's TCP sockets that listen: of the tables, those that its descriptors name."""
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            own.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:  # the folder's own descriptor
            continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {fields[9] for fields in lines if fields[3] == "0A" and fields[9] in own}


def test_the_stores_files_have_no_text_even_where_spans_have_it(tmp_path: Path) -> None:
    """With COREVITAL_CAPTURE_CONTENT=1. COREVITAL_DB_CONTENT=1 would keep outputs, of risky requests alone."""
    db = tmp_path / "runs/corevital.db"
    hub = Hub(Settings(db=db, capture_content=True, capture="full"), "tiny")
    hub.start()
    stamp = hub.admit(
        Admitted(request_id="r", engine_id="e", sequence=0, operation="chat", model="tiny", arrival_ns=time.time_ns(),
                 prompt_tokens=1, prompt_text="s3cret prompt")
    )  # fmt: skip
    assert stamp is not None
    hub.finish(stamp.key, Finished(reason="stop", token_ids=(7,), end_ns=time.time_ns(), text="s3cret answer"))
    assert hub.drain(10)
    while_it_runs = b"".join(file.read_bytes() for file in db.parent.iterdir())
    hub.close()
    assert b'"corevital.tokens.observed"' in while_it_runs + db.read_bytes()
    assert b"s3cret" not in while_it_runs + db.read_bytes()
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in db.parent.iterdir())
