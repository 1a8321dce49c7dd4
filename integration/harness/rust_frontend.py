"""Fetch vLLM's Rust frontend: ``python integration/harness/rust_frontend.py VERSION FILE``.

It is one file of the wheel of vLLM's CUDA build (a third of a gigabyte), which the CPU build lacks. The frontend speaks
to an engine of the same version over a socket, so it serves the CPU build's engine as well. Only that file is kept.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_MEMBER = "vllm/vllm-rs"


def main(version: str, file: str) -> None:
    target = Path(file)
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fetch = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, f"vllm=={version}"]
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *fetch], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        partial = Path(folder) / target.name
        with zipfile.ZipFile(wheel) as members:
            if _MEMBER not in members.namelist():
                print(f"vLLM {version} has no Rust frontend")
                return
            with members.open(_MEMBER) as source, partial.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        partial.chmod(0o755)
        partial.replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
