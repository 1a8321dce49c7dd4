"""The demo's summary of its traffic, and its failures."""

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from corevital_otel.cli.demo import command
from corevital_otel.cli.demo.command import run
from corevital_otel.cli.demo.server import Server, ServerError, free_port
from corevital_otel.cli.demo.summary import Judged, judge, selection, separation
from corevital_otel.cli.demo.tasks import Task
from corevital_otel.cli.demo.traffic import Exchange
from corevital_otel.cli.errors import CommandError
from corevital_otel.store.reader import StoredReport


def judged(kind: str, risk: float, right: bool | None) -> Judged:
    exchange = Exchange(Task(kind, "?", None if right is None else "1"), f"r{risk}", 0, "1" if right else "2")
    report = StoredReport(
        exchange.request_id, 0, "", "tiny", "stop", 1, 1, risk, "low", "prior", "", "", [], {}
    )  # fmt: skip
    return Judged(exchange, report, right)


def test_risk_is_compared_within_kinds_of_task_only() -> None:
    # across kinds the hard kind's higher risk would look like skill: AUROC 0.75
    items = [judged("add", 0.1, True), judged("add", 0.1, False), judged("sum", 0.9, False), judged("sum", 0.9, True)]
    found = separation(items)
    assert found is not None
    assert (found.auroc, found.n, found.bad) == (0.5, 4, 2)
    perfect = separation([judged("add", 0.1, True), judged("add", 0.2, False), judged("story", 0.9, None)])
    assert perfect is not None
    assert (perfect.auroc, perfect.auroc_low, perfect.auroc_high) == (1.0, 1.0, 1.0)
    assert separation([judged("add", 0.1, True), judged("sum", 0.9, False)]) is None


def test_answers_are_joined_with_their_reports() -> None:
    item = judged("add", 0.5, True)
    reports = {("r0.5", 0): item.report}
    assert judge([item.exchange], reports) == [item]
    assert judge([item.exchange], {}) == []


def test_the_selection_spans_each_kind_from_least_to_most_risky() -> None:
    chosen = selection([judged("add", risk / 10, True) for risk in range(10)] + [judged("loop", 0.5, None)])
    assert [item.report.risk_score for item in chosen if item.exchange.task.kind == "add"] == [0.0, 0.4, 0.9]
    assert len(chosen) == 4


@pytest.mark.parametrize("found", [None, "/usr/bin/corevital"])
def test_it_ends_with_commands_that_can_be_copied(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: found)
    items = [judged("add", 0.1, True), judged("add", 0.9, False)]
    for item, kind in zip(items, ("text_completion", "chat"), strict=True):
        item.report.summary["gen_ai.operation.name"] = kind
    lines = list(command._next_steps(items, "chatcmpl-1", Path("my runs/c.db")))
    show, ui, place, compare = (line.partition(":")[2].strip() for line in lines)
    name = show.partition(" show ")[0]
    assert (name == "corevital") is (found is not None)
    assert show == f"{name} show chatcmpl-1 --db 'my runs/c.db'"
    assert ui == f"{name} ui --db 'my runs/c.db'"
    assert place == "http://127.0.0.1:8765/request?id=chatcmpl-1"
    program, verb, a, b = shlex.split(compare)
    assert (program, verb) == (name, "compare")
    for written, kind in ((a, "chat"), (b, "text_completion")):
        assert written == f"my runs/c.db@gen_ai.operation.name={kind}"
    assert list(command._next_steps(items[:1], None, Path("c.db")))[-1].endswith(" compare OLD.db NEW.db")


def start(tmp_path: Path, code: str) -> Server:
    return Server(free_port(), tmp_path / "server.log", {}, (sys.executable, "-c", code))


def test_a_server_that_dies_is_one_line_with_its_last_log_line(tmp_path: Path) -> None:
    with start(tmp_path, "raise SystemExit('corevital: no luck today')") as server, pytest.raises(ServerError) as error:
        server.wait_ready(lambda _: None)
    assert "exited with code 1" in str(error.value)
    assert "no luck today" in str(error.value)
    assert "\n" not in str(error.value)


def test_stopping_takes_the_children_too(tmp_path: Path) -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '321']); time.sleep(321)"
    server = start(tmp_path, code)

    def members() -> str:
        command = ["pgrep", "-g", str(server._process.pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    for _ in range(100):
        if len(members().split()) == 2:
            break
    server.stop()
    assert members() == ""
    server.stop()


@pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")
def test_the_demo_without_transformers_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="transformers is not installed: pip install transformers torch"):
        run(requests=10, engine="transformers", port=None, db=tmp_path / "corevital.db")
    assert not list(tmp_path.iterdir())


def test_a_port_without_a_server_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--port: transformers has no server") as error:
        run(requests=10, engine="transformers", port=8000, db=tmp_path / "corevital.db")
    assert error.value.code == 2


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServerError, match="is taken: name another"):
        Server(taken.getsockname()[1], tmp_path / "log", {}, (sys.executable, "-c", ""))
