"""What TGI's adapter costs processes that are not to be measured; and the names it uses, in the stand-in's source."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.harness import tgi_names

ROOT = Path(__file__).parents[2]
PTH = ROOT / "plugin/corevital_attach.pth"
PROGRAM = """
import site, sys
sys.path[:0] = sys.argv[2:]
before = set(sys.modules)
finders = len(sys.meta_path)
site.addsitedir(sys.argv[1])
print(len(sys.meta_path) - finders, *sorted(set(sys.modules) - before))
"""


def imported(tmp_path: Path, **given: str) -> list[str]:
    """How many finders were added at Python's start, and which modules it imported for our file."""
    (tmp_path / PTH.name).write_text(PTH.read_text())
    env = {name: value for name, value in os.environ.items() if not name.startswith("COREVITAL_")} | given
    # -S: the file may be in this environment too
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(tmp_path), str(ROOT / "plugin")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_a_process_without_the_variable_imports_nothing(tmp_path: Path) -> None:
    assert imported(tmp_path) == ["0"]


def test_a_process_with_it_imports_one_module_of_ours_and_none_of_others(tmp_path: Path) -> None:
    finders, *modules = imported(tmp_path, COREVITAL_ATTACH="tgi")
    assert finders == "1"
    ours = {name for name in modules if name.startswith("corevital")}
    assert ours == {
        "corevital", "corevital._version", "corevital.engines", "corevital.engines.tgi", "corevital.engines.tgi.loader",
    }  # fmt: skip
    assert not {"torch", "zmq", "numpy", "logging", "json", "opentelemetry"} & set(modules)


def test_the_file_is_one_line_that_python_runs(tmp_path: Path) -> None:
    (line,) = PTH.read_text().splitlines()
    assert line.startswith("import "), "else Python takes it for a folder"


def test_the_stand_in_has_every_name_that_is_used_of_tgi() -> None:
    checked, lacking = tgi_names.look(ROOT / "tests/harness/tgi")
    assert not lacking
    assert checked == 41


@pytest.mark.parametrize(
    ("file", "old", "new", "lacks"),
    [
        ("utils/tokens.py", "self, last_token: Any,", "self, token: Any,", "StoppingCriteria.__call__"),
        ("server.py", "async def Decode", "async def Decodes", "TextGenerationService.Decode is not there"),
        ("models/causal_lm.py", "batch.input_lengths", "batch.lengths", "batch.input_lengths"),
    ],
)
def test_a_name_that_has_changed_is_found(tmp_path: Path, file: str, old: str, new: str, lacks: str) -> None:
    for each in (ROOT / "tests/harness/tgi").rglob("*.p*"):
        to = tmp_path / each.relative_to(ROOT / "tests/harness/tgi")
        to.parent.mkdir(parents=True, exist_ok=True)
        if each.is_file():
            to.write_bytes(each.read_bytes())
    path = tmp_path / "server/text_generation_server" / file
    path.write_text(path.read_text().replace(old, new))
    (lacking,) = tgi_names.look(tmp_path)[1]
    assert lacks in lacking
