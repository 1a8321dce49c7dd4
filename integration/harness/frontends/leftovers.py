"""What a server has left behind: processes in any group or session, and abstract Unix sockets of ours."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from tests.harness.processes import Group

_NAME = "LEFTOVERS_OF"


class Trail:
    """Finds all that a server starts, by its process group and by a mark in the environment.

    A process that vLLM gives a title has no environment to be read any more, but stays in the group; our hub process
    leaves the group, and keeps its environment.

    Attributes:
        env: put this into the server's environment.
    """

    def __init__(self) -> None:
        self.env = {_NAME: uuid.uuid4().hex}
        self._mark = f"{_NAME}={self.env[_NAME]}".encode()
        self._groups: set[int] = set()
        self._sockets: set[str] = set()

    def follow(self, group: Group) -> None:
        """This group's processes are of the server."""
        self._groups.add(group.process.pid)

    def processes(self) -> dict[int, str]:
        """Those that live: pid and command line."""
        return {
            int(entry.name): command
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and (command := self._command(entry)) is not None
        }

    def _command(self, entry: Path) -> str | None:
        """The command line of a living process of the server; None for others."""
        try:
            is_grouped = os.getpgid(int(entry.name)) in self._groups
            if not is_grouped and self._mark not in (entry / "environ").read_bytes().split(b"\0"):
                return None
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return None
            return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            return None

    def sockets(self) -> set[str]:
        """Names of our abstract sockets that these processes have open; remembered for :meth:`wait_gone`."""
        for pid in self.processes():
            self._sockets |= {name for inode, name in _ours(pid) if inode in _inodes(pid)}
        return set(self._sockets)

    def wait_gone(self, timeout_s: float) -> list[str]:
        """Wait until no process and no remembered socket is left; what is left after that time."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = [f"process {pid}: {command}" for pid, command in self.processes().items()]
            left += [f"socket {name}" for _, name in _ours(os.getpid()) if name in self._sockets]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)


def _ours(pid: int) -> list[tuple[str, str]]:
    """Inode and name of each abstract socket of ours in a process's network namespace."""
    try:
        lines = Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines()[1:]
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [(row[6], row[7]) for row in rows if len(row) > 7 and row[7].startswith("@corevital")]


def _inodes(pid: int) -> set[str]:
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass
    return found
