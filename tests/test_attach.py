"""COREVITAL_ATTACH: which engines it names, and the one line about a name it does not know."""

import subprocess
import sys

import pytest

from corevital import attach

PROGRAM = """
import multiprocessing
from corevital.attach import wanted
env = {"COREVITAL_ATTACH": "sglnag\\x1b[2J,tgi"}
child = multiprocessing.get_context("fork").Process(target=wanted, args=("tgi", env))
child.start()
child.join()
print(wanted("sglang", env), wanted("tgi", env))
"""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("sglang", ["sglang"]),
        ("tgi", ["tgi"]),
        (" TGI , sglang,", ["sglang", "tgi"]),
        ("", []),
        (" , ", []),
        ("sglang tgi", []),
        ("1", []),
    ],
)
def test_it_names_engines(value: str, expected: list[str]) -> None:
    assert [engine for engine in attach.ENGINES if attach.wanted(engine, {attach.VARIABLE: value})] == expected


def test_without_the_variable_no_engine_is_wanted() -> None:
    assert not attach.wanted("sglang", {})


def test_an_engine_that_cannot_be_measured_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attach.VARIABLE, "SGLang, tgi")
    attach.withdraw("sglang")
    assert [engine for engine in attach.ENGINES if attach.wanted(engine)] == ["tgi"]


def test_an_unknown_name_is_logged_once_by_the_process_that_starts_the_others() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert done.stderr == (
        "corevital WARNING: COREVITAL_ATTACH: unknown engine 'sglnag\\x1b[2j', ignored: use sglang; "
        "only engines that it names are measured\n"
    )
