"""corevital's log lines, read from the stderr of a process as an operator's collector does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

START = """
import sys
from corevital import log
{before}
log.configure()
"""


def lines(code: str, before: str = "", **env: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COREVITAL_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", START.format(before=before) + code],
        env={**clean, **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_text_is_the_default() -> None:
    assert lines("log.warn_once('x', 'a %s', 'thing')") == ["corevital WARNING: a thing"]


def test_a_line_is_an_object_with_its_time_and_place() -> None:
    (line,) = lines("log.warn_once('x', 'a \"%s\"\\nover lines', 'thing')", COREVITAL_LOG_FORMAT="json")
    fields = json.loads(line)
    assert fields["message"] == 'a "thing"\nover lines'
    assert (fields["level"], fields["logger"]) == ("WARNING", "corevital")
    moment = datetime.fromisoformat(fields["time"].replace("Z", "+00:00"))
    assert abs(moment.timestamp() - time.time()) < 60
    assert moment.tzinfo == UTC
    assert "request_id" not in fields, "not about a request"


def test_a_line_about_a_request_has_its_ids() -> None:
    code = """
with log.about("chatcmpl-1") as fields:
    fields["trace_id"] = "4bf9"
    log.warn_once("one", "inside")
with log.about("chatcmpl-2", "5cf0"):
    log.warn_once("two", "inside")
log.warn_once("three", "outside")
"""
    found = [json.loads(line) for line in lines(code, COREVITAL_LOG_FORMAT="json")]
    ids = [(fields.get("request_id"), fields.get("trace_id")) for fields in found]
    assert ids == [("chatcmpl-1", "4bf9"), ("chatcmpl-2", "5cf0"), (None, None)]


def test_a_fault_is_one_line_with_its_traceback() -> None:
    code = """
from corevital.guard import guarded
with log.about("chatcmpl-1"):
    guarded("a place")(lambda: 1 / 0)()
"""
    (line,) = lines(code, COREVITAL_LOG_FORMAT="json")
    fields = json.loads(line)
    assert fields["request_id"] == "chatcmpl-1"
    assert "ZeroDivisionError" in fields["exception"]


def test_a_prefix_on_every_line_of_stderr_is_not_on_json_lines() -> None:
    before = "write = sys.stderr.write\nsys.stderr.write = lambda text: write('(APIServer pid=1) ' + text)"
    (line,) = lines("log.warn_once('x', 'y')", before, COREVITAL_LOG_FORMAT="json")
    assert json.loads(line)["message"] == "y"
    (line,) = lines("log.warn_once('x', 'y')", before)
    assert line == "(APIServer pid=1) corevital WARNING: y"


def test_a_stderr_that_is_not_a_file_gets_the_line_too() -> None:
    before = "import io\nsys.stderr = io.StringIO()"
    after = "log.warn_once('x', 'y')\nsys.__stderr__.write(sys.stderr.getvalue())"
    (line,) = lines(after, before, COREVITAL_LOG_FORMAT="json")
    assert json.loads(line)["message"] == "y"


HOSTILE = "chatcmpl-\x1b]0;owned\x07\x9b2J\nFAKE\u2028\u202e\ud800"


def test_untrusted_text_can_neither_forge_a_line_nor_control_a_terminal() -> None:
    (line,) = lines(f"log.warn_once('x', 'request %s', {HOSTILE!r})")
    assert line == r"corevital WARNING: request chatcmpl-\x1b]0;owned\x07\x9b2J\nFAKE\u2028\u202e\ud800"
    (line,) = lines(f"log.warn_once('x', 'request %s', {HOSTILE!r})", COREVITAL_LOG_FORMAT="json")
    assert line.isprintable(), line
    assert json.loads(line)["message"] == f"request {HOSTILE}"


def test_a_traceback_keeps_its_lines_and_nothing_else() -> None:
    code = f"try: raise ValueError({HOSTILE!r})\nexcept ValueError: log.warn_once('x', 'failed', exc_info=True)"
    found = lines(code)
    assert len(found) > 3
    assert all(line.isprintable() for line in found), found


def test_a_launcher_that_shows_only_json_gets_its_lines_on_standard_output() -> None:
    code = "log.show_through_launcher()\n" + START.format(before="") + "log.warn_once('x', 'a \"%s\"\\nb', 'thing')"
    for form in ("text", "json"):
        env = {**os.environ, "COREVITAL_LOG_FORMAT": form}
        program = "from corevital import log\n" + code
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        (line,) = map(json.loads, done.stdout.splitlines())
        assert line["record"] == {"level": {"name": "WARNING"}}, "as much of loguru's record as is read"
        text = line["text"].rstrip("\n")
        assert text == 'corevital WARNING: a "thing"\\nb' if form == "text" else json.loads(text)["message"]
