"""The telemetry half works without torch and an engine, and no engine's name stands where any engine is meant."""

import subprocess
import sys
from pathlib import Path

import corevital
import corevital_otel
from corevital_otel.asset_files import PACKAGED

CODE = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "vllm", "sglang", "numba", "triton", "transformers"}:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
import corevital_otel
from corevital_otel.asset_files import PACKAGED
names = [module.name for module in pkgutil.walk_packages(corevital_otel.__path__, "corevital_otel.")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
import corevital.kernels, corevital.frames
for module in pkgutil.walk_packages(corevital.frames.__path__, "corevital.frames."):
    importlib.import_module(module.name)
print(len(names))
"""


def test_every_module_imports_without_torch_and_engine() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


PLUGIN, OTEL = Path(corevital.__file__).parent, Path(corevital_otel.__file__).parent
MAY_NAME_AN_ENGINE = {
    PLUGIN / "engines" / "vllm": "the engine's folder",
    PLUGIN / "engines" / "sglang": "the engine's folder",
    PLUGIN / "engines" / "tgi": "the engine's folder",
    PLUGIN / "attach.py": "the engines that must be named",
    PLUGIN / "engines" / "protocol.py": "an example of a name",
    PLUGIN / "entry.py": "the entry points, by engine",
    PLUGIN / "supported.py": "checked versions, by engine",
    OTEL / "cli" / "engines.py": "the table of engines",
    OTEL / "cli" / "demo": "serves with one engine",
    OTEL / "cli" / "app.py": "the help of demo",
}
"""Folders and files, and why."""
ASSETS = OTEL / PACKAGED
"""In a wheel: files for others, and no module of the package."""


def named(folder: Path) -> list[str]:
    """Lines that name an engine."""
    return [
        f"{file.relative_to(folder.parent)}:{number}: {line.strip()}"
        for file in sorted(folder.rglob("*.py"))
        if not any(file.is_relative_to(place) for place in (*MAY_NAME_AN_ENGINE, ASSETS))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if any(engine in line.lower() for engine in ("vllm", "sglang", "tgi.", "dynamo"))
    ]


def test_no_engine_is_named_outside_its_folder() -> None:
    assert all(place.exists() for place in MAY_NAME_AN_ENGINE)
    assert not named(PLUGIN), "\n".join(named(PLUGIN))
    assert not named(OTEL), "\n".join(named(OTEL))
