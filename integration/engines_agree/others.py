"""Engines in a separate environment: SGLang's server and TGI's shard, started as by their tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import httpx
from integration.engines_agree.asks import STORE, Ask, settings
from integration.harness.runners import python_path
from integration.harness.vllm_server import MODEL

from corevital_otel.store.reader import StoreError, StoreReader

_START_S: Final = 240.0
_ROWS_S: Final = 30.0
_SGLANG: Final = "integration.harness.sglang_server"
_TGI: Final = "integration.tgi"
_TGI_VARIABLES: Final = ("TGI_PYTHON", "TGI_SRC")
"""As for ``make test-tgi``: the Python of an environment without the flash path, which is float32; TGI's sources."""
_FOR_TGI: Final = {
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "config.json": {"torch_dtype": "float32", "rope_theta": 10000.0},
}
"""The demo model as the older transformers of TGI reads it."""


def sglang(folder: Path, asked: Sequence[Ask]) -> list[list[int]]:
    """A server, and its own endpoint."""
    server = import_module(_SGLANG).Sglang(folder, env=_attached("sglang", folder))
    try:
        server.wait_ready(_START_S)
        tokens = []
        for ask in asked:
            params = {"temperature": 0, "max_new_tokens": ask.max_tokens, "repetition_penalty": ask.penalty}
            body = {"input_ids": ask.ids, "sampling_params": params}
            reply = httpx.post(f"{server.url}/generate", json=body, timeout=_START_S, trust_env=False)
            tokens.append(reply.raise_for_status().json()["output_ids"])
        _await_rows(folder / STORE, len(asked))
    finally:
        server.stop()
    return tokens


def sglang_missing() -> str:
    """Why it cannot be run here."""
    is_here = find_spec(_SGLANG) is not None and import_module(_SGLANG).PYTHON.exists()
    return "" if is_here else "no .venv-sglang"


def tgi(folder: Path, asked: Sequence[Ask]) -> list[list[int]]:
    """A shard, without a router."""
    python, source = os.environ["TGI_PYTHON"], Path(os.environ["TGI_SRC"]).resolve()
    shards = import_module(f"{_TGI}.shards")
    shutil.copytree(MODEL, folder / "model")
    for name, changes in _FOR_TGI.items():
        file = folder / "model" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (folder / "job.json").write_text(json.dumps([ask._asdict() for ask in asked]))
    (folder / "shard").mkdir()
    env = shards.environment("paged", source, _attached("tgi", folder))
    with shards.shard(python, folder / "model", folder / "shard", env) as socket:
        done = subprocess.run(
            [python, str(Path(__file__).with_name("tgi_client.py")), str(socket), str(folder / "job.json")],
            env={**os.environ, "PYTHONPATH": python_path(source / "server")},
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        _await_rows(folder / STORE, len(asked))
    return list(json.loads(done.stdout.splitlines()[-1]))


def tgi_missing() -> str:
    """Why it cannot be run here."""
    unset = [name for name in _TGI_VARIABLES if not os.environ.get(name)]
    if unset or find_spec(_TGI) is None:
        return f"it is in no package index; {' and '.join(_TGI_VARIABLES)} are not set"
    return ""


def _attached(engine: str, folder: Path) -> dict[str, str]:
    return {**settings(folder), "COREVITAL_ATTACH": engine, "COREVITAL_HTTP": "none"}


def _await_rows(store: Path, count: int) -> None:
    """Wait for rows, which a hub process writes. If some are missing, who reads them raises."""
    deadline = time.monotonic() + _ROWS_S
    while time.monotonic() < deadline:
        with suppress(StoreError):  # there is no store yet
            if StoreReader(store).count() >= count:
                return
        time.sleep(0.2)
