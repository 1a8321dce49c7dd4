"""The official clients of the OpenAI API, Python and Node: what each gives its caller, in every form of an answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from openai import OpenAI
from tests.harness.processes import ROOT

NODE: Final = ROOT / ".venv-clients"
"""Node, and the client in ``node_modules``: ``make`` installs both."""
PAGE: Final = ROOT / "docs/operate/verdict.md"

ASKED: Final[dict[str, Any]] = {"vllm_xargs": {"corevital_return": 1}}
_LEVEL: Final = re.compile(r"\b(low|medium|high|unknown)\b")
_SCRIPT: Final = ROOT / "integration/harness/openai_node/ask.mjs"
_CHAT: Final[dict[str, Any]] = {
    "messages": [{"role": "user", "content": "What is 1 + 2?"}],
    "max_tokens": 12,
    "seed": 1,
    "temperature": 0.5,
}

Found = dict[str, dict[str, Any]]
"""By ``plain`` and ``asked``, then by form: what the client gave, as JSON values."""


def python(url: str, model: str) -> Found:
    """What the Python client gives."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    return {"plain": _python(client, model, {}), "asked": _python(client, model, ASKED)}


def _python(client: OpenAI, model: str, extra: dict[str, Any]) -> dict[str, Any]:
    chat: Any = {"model": model, "extra_body": extra, **_CHAT}
    respond: Any = {
        "model": model,
        "input": "What is 1 + 2?",
        "max_output_tokens": 12,
        "temperature": 0,
        "extra_body": extra,
    }
    raw = client.chat.completions.with_raw_response.create(n=2, **chat)
    streamed = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **chat)
    prompts: Any = {"model": model, "max_tokens": 4, "extra_body": extra}
    with client.chat.completions.stream(**chat) as helper:
        helped = helper.get_final_completion()
    with client.responses.stream(**respond) as events:
        responded = events.get_final_response()
    made: dict[str, Any] = {
        "chat": raw.parse(),
        "chat_stream": list(streamed),
        "chat_helper": helped,
        "completion": client.completions.create(prompt=["1 + 2 =", "2 + 2 ="], **prompts),
        "completion_stream": list(client.completions.create(prompt="1 + 2 =", stream=True, **prompts)),
        "response": client.responses.create(**respond),
        "response_stream": list(client.responses.create(stream=True, **respond)),
        "response_helper": responded,
    }
    found = {
        name: [one.to_dict() for one in value] if isinstance(value, list) else value.to_dict()
        for name, value in made.items()
    }
    return {**found, "header": raw.headers.get("x-corevital-risk-level")}


def node(url: str, model: str, folder: Path) -> Found:
    """What the Node client gives."""
    return dict(json.loads(run_node(_SCRIPT.read_text(), folder, f"{url}/v1", model)))


def run_node(script: str, folder: Path, *arguments: str) -> str:
    """What a module prints that may import the client."""
    if not (link := folder / "node_modules").exists():
        link.symlink_to(NODE / "node_modules")
    (folder / "ask.mjs").write_text(script)
    command = [str(NODE / "bin/node"), str(folder / "ask.mjs"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_examples(url: str, model: str, folder: Path) -> None:
    """Run the page's examples against this server; each prints a level of risk."""
    own = [sys.executable, "-c"]
    for script in _examples("python", url, model):
        _check_printed(subprocess.run([*own, script], capture_output=True, text=True, timeout=120, check=False))
    for script in _examples("sh", url, model):
        _check_printed(
            subprocess.run(["bash", "-euc", script], capture_output=True, text=True, timeout=120, check=False)
        )
    for script in _examples("js", url, model):
        assert _LEVEL.search(run_node(script, folder))


def _check_printed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert _LEVEL.search(done.stdout), done.stdout


def _examples(language: str, url: str, model: str) -> list[str]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks, language
    return [block.replace("http://localhost:8000", url).replace("MODEL", model) for block in blocks]
