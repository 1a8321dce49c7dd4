"""What the ``.pth`` file calls at the start of every Python process that has ``COREVITAL_ATTACH``.

Imports nothing of the engine and next to nothing of ours: it only waits for the module of TGI's server to be imported,
which happens in shards alone.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own takes ten milliseconds to import
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Final

SERVER: Final = "text_generation_server.server"


class _AfterImport:
    """A finder that is gone once it has found the server's module."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Of the server's module alone: as the other finders have it, with a call of ours behind its execution."""
        if name != SERVER:
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if module.__name__ == SERVER:
                _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def arm() -> None:
    """Register with TGI's server as soon as its module is imported. Idempotent."""
    if SERVER in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    """The first shard reports: it sees every token, and the others see the same."""
    if os.environ.get("RANK", "0") != "0":
        return
    from corevital.guard import guarded
    from corevital.log import show_through_launcher

    if "--json-output" in sys.argv:  # TGI's launcher asks for it, and hides all other lines
        show_through_launcher()
    guarded("the start of the shard")(_attach)()


def _attach() -> None:
    import importlib

    from corevital.attach import wanted

    if wanted("tgi"):
        importlib.import_module("corevital.entry").register_tgi()  # an entry point, of which no list is read
