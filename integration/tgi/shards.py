"""Starts a shard of TGI with one of the small models."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

START_S: Final = 300.0


def environment(attention: str, source: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a shard, without those of ours that are set here."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COREVITAL_")}
    return {
        **inherited, "PYTHONPATH": str(source / "server"), "ATTENTION": attention, "PREFIX_CACHING": "0",
        "PREFILL_CHUNKING": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2",
        "COREVITAL_HTTP": "none", **env,
    }  # fmt: skip


@contextmanager
def shard(
    python: str, model: Path, folder: Path, env: Mapping[str, str], arguments: Sequence[str] = ()
) -> Iterator[Path]:
    """A shard that serves; yields its socket. What it writes to its outputs is in ``folder``.

    Raises:
        RuntimeError: it did not start; with the end of its errors.
    """
    socket = folder / "shard"
    program = "from text_generation_server.cli import app; app()"
    command = [python, "-c", program, "serve", str(model), "--uds-path", str(socket), "--json-output", *arguments]
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(command, env=dict(env), stdout=out, stderr=err)
        try:
            path, deadline = Path(f"{socket}-0"), time.monotonic() + START_S
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "stderr").read_text()[-3000:])
                time.sleep(0.1)
            yield path
        finally:
            process.terminate()
            process.wait(60)


def launcher_lines(folder: Path) -> list[str]:
    """Our lines of a shard that TGI's launcher would show."""
    found = []
    for line in (folder / "stdout").read_text().splitlines():
        if line.startswith('{"text": "corevital'):
            found.append(str(json.loads(line)["text"]))
    return found


def has_flash(python: str) -> bool:
    """Whether this Python's TGI takes the flash path on a CPU: it looks for the same package."""
    program = "import importlib.util as util, sys; sys.exit(not util.find_spec('intel_extension_for_pytorch'))"
    return not subprocess.run([python, "-c", program], check=False).returncode
