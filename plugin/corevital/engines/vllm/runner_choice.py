"""Which model runner vLLM would choose here, and why. ``python -m corevital.engines.vllm.runner_choice`` prints JSON.

``corevital doctor`` starts it as a process, since its half knows no engine. What depends on the model (a feature that
V2 lacks) is not known here; each request's span names the runner that served it.
"""

from __future__ import annotations

import json
import logging

from corevital.engines.vllm import facts
from corevital.engines.vllm.names import processor_bases


class _Reasons(logging.Handler):
    """Keeps what vLLM says of its choice."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if "odel runner" in line or "Model Runner" in line:
            self.lines.append(line)


def choice() -> dict[str, str | bool]:
    """``runner``, ``why`` (vLLM's own words, may be empty) and ``shown`` (whether that runner shows us its logits)."""
    reasons = _Reasons()
    from vllm.config import VllmConfig

    logging.getLogger("vllm").addHandler(reasons)
    runner = facts.runner(VllmConfig())
    shown = runner == "v1" or len(processor_bases()) > 1
    return {"runner": runner, "why": " ".join(dict.fromkeys(reasons.lines)), "shown": shown}


if __name__ == "__main__":
    print(json.dumps(choice()))  # noqa: T201 - its output
