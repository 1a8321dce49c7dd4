"""What the wheel has beside the files of the repository.

- ``corevital_attach.pth`` beside the packages, unless ``COREVITAL_PTH=0`` is set where the wheel is built.
- What ``corevital assets`` writes: ``dashboards/``, the Compose file and ``.env.example``, inside the package.
- The scripts of others that ``corevital ui`` uses, with their licences. npm fetches them; an archive with other content
  than the one named here is refused. Without npm, or with ``COREVITAL_UI_SCRIPTS=0``, the wheel is built without them:
  the page then works without scripts.
"""

import hashlib
import os
import runpy
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILE = "corevital_attach.pth"
LISTED = "otel/corevital_otel/asset_files.py"
VENDOR = "otel/corevital_otel/ui/static/vendor"
PACKAGES = {
    "htmx.org@4.0.1": (
        "5fba65616ca148a86d377e9771bcada7f35faee3558651feb929eea425e13b3c",
        {"dist/htmx.min.js": "htmx.min.js", "LICENSE": "htmx.LICENSE"},
    ),
    "uplot@1.6.32": (
        "4b8a8191e425658e3ea8c8c1314b0fc679c861ee3a1af2b20c7b16ba50b5133d",
        {
            "dist/uPlot.iife.min.js": "uPlot.iife.min.js",
            "dist/uPlot.min.css": "uPlot.min.css",
            "LICENSE": "uPlot.LICENSE",
        },
    ),
}
"""A package of npm: the SHA-256 of its archive, and the name here of each file that is taken."""
NPM_S = 120


class Hook(BuildHookInterface[Any]):
    """The wheel's, and that of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is made."""
        if version != "editable":
            listed = runpy.run_path(str(Path(self.root) / LISTED))
            for name, file in listed["in_repository"](Path(self.root)).items():
                build_data["force_include"][str(file)] = f"corevital_otel/{listed['PACKAGED']}/{name}"
        if os.environ.get("COREVITAL_PTH", "1") != "0":
            build_data["force_include" + ("_editable" if version == "editable" else "")][f"plugin/{FILE}"] = FILE
        if os.environ.get("COREVITAL_UI_SCRIPTS", "1") == "0":
            return
        try:
            fetch(Path(self.root) / VENDOR)
        except (OSError, subprocess.SubprocessError, KeyError, tarfile.TarError, ValueError) as error:
            self.app.display_warning(
                f"built without the scripts of `corevital ui` ({error}): install npm and build again"
            )


def fetch(folder: Path) -> None:
    """Fetch what ``folder`` does not have yet, or has of another version or with other content."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, (digest, files) in PACKAGES.items():
        marker = folder / f".{package.partition('@')[0]}"
        kept = [folder / name for name in files.values()]
        if marker.is_file() and marker.read_text() == state(digest, kept):
            continue
        with tempfile.TemporaryDirectory() as name:
            command = ["npm", "pack", "--silent", "--fetch-retries=1", f"--pack-destination={name}", package]
            subprocess.run(command, cwd=name, check=True, capture_output=True, timeout=NPM_S)  # noqa: S603 - a list of ours, without a shell
            (archive,) = Path(name).glob("*.tgz")
            found = sha256(archive)
            if found != digest:
                raise ValueError(f"{package} has SHA-256 {found}")
            with tarfile.open(archive) as members:
                for path, file in zip(files, kept, strict=True):
                    content = members.extractfile(f"package/{path}")
                    if content is None:
                        raise ValueError(f"{package} has no {path}")
                    file.write_bytes(content.read())
        marker.write_text(state(digest, kept))


def state(digest: str, files: list[Path]) -> str:
    """What a marker has: the SHA-256 of the archive, and of each file that was taken from it."""
    return "\n".join([digest, *(sha256(file) if file.is_file() else "" for file in files)])


def sha256(file: Path) -> str:
    """The digest of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
