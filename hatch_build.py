"""Puts ``corevital_attach.pth`` beside the packages, unless ``COREVITAL_PTH=0`` is set where the wheel is built."""

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILE = "corevital_attach.pth"


class Hook(BuildHookInterface[Any]):
    """The wheel's, and that of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is made."""
        if os.environ.get("COREVITAL_PTH", "1") != "0":
            build_data["force_include" + ("_editable" if version == "editable" else "")][f"plugin/{FILE}"] = FILE
