"""The scenarios on TGI's real service, called in its own process: no gRPC, no socket.

    python in_process.py MODEL SPECULATE SCENARIO ...

Run by the Python of TGI's environment. The model is loaded once. Prints, as JSON, what the client was given without
corevital and then with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import shard_client  # type: ignore[import-not-found]  # beside this file
from text_generation_server import server
from text_generation_server.cache import Cache
from text_generation_server.models import get_model_with_lora_adapters
from text_generation_server.models.globals import set_adapter_to_index

from corevital.attach import VARIABLE
from corevital.engines.tgi import loader


class Context:
    """Stand-in for gRPC's: the metadata of a call."""

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        return self._metadata


class Here(shard_client.Shard):
    """A shard in this process."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._service = server.TextGenerationService(model, Cache(), [])

    def ask(self, method: str, message: Any, metadata: Any) -> Any:
        return asyncio.run(getattr(self._service, method)(message, Context(metadata)))

    def drive(self, scenarios: list[str]) -> list[Any]:
        self.warm_up()
        for name in scenarios:
            shard_client.SCENARIOS[name](self)
        return list(self.seen.values())


if __name__ == "__main__":
    folder, drafts, *names = sys.argv[1:]
    model = get_model_with_lora_adapters(folder, [], None, False, None, int(drafts) or None, None, None, False, 64, {})
    set_adapter_to_index({})
    plain = Here(model).drive(names)
    os.environ[VARIABLE] = "tgi"  # not before: the .pth file would have armed at the start
    loader.arm()
    print(json.dumps([plain, Here(model).drive(names)]))
