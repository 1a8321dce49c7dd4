"""Messages begin in lower case, have no full stop and are one line: in a log and on a terminal they follow a prefix."""

from __future__ import annotations

import re

import pytest
from tests.english.check import ROOT, files
from tests.english.messages import messages

NAMES = ("HTTP", "JSON", "Model Runner V2", "NaN", "OTLP", "Parquet", "SGLang", "SQLite", "TCP", "Triton")
"""Names that keep their capital letter at the beginning."""

SOURCE = """
log.warning("the store %s is closed", path)
warn_once("device", f"the device is {name}" " lost")
raise CommandError("no store: name one")
counters.add("dropped", 1)
log.warning(text)
"""


def problem(text: str) -> str:
    """What is wrong with a message; empty if nothing is."""
    if text.endswith("."):
        return "leave out the full stop"
    if "\n" in text:
        return "write one line"
    if text[:1].isupper() and not text.startswith(NAMES) and not re.match(r"[A-Z]+_", text):
        return "begin in lower case, or add the name to NAMES"
    return ""


def test_messages_have_one_form() -> None:
    found = [
        (f"{file.relative_to(ROOT)}:{message.line}", message.text)
        for file in files(["plugin", "otel"])
        if file.suffix == ".py"
        for message in messages(file.read_text())
    ]
    assert len(found) > 100
    wrong = [f'{place}: "{text}": {problem(text)}' for place, text in found if problem(text)]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("the store is closed", ""),
        ("COREVITAL_DB is empty", ""),
        ("HTTP 429", ""),
        ("The store is closed", "lower case"),
        ("the store is closed.", "full stop"),
        ("the store\nis closed", "one line"),
    ],
)
def test_a_wrong_form_is_found(text: str, wrong: str) -> None:
    assert wrong in problem(text)
    assert bool(wrong) == bool(problem(text))


def test_messages_of_logging_and_of_errors_are_read() -> None:
    assert [message.text for message in messages(SOURCE)] == [
        "the store %s is closed",
        "the device is {} lost",
        "no store: name one",
    ]
