"""Which model runner vLLM would choose here, and why: ``python -m corevital.engines.vllm_runner`` prints it as JSON.

A process of its own for ``corevital doctor``, whose half knows no engine. What depends on the model (a feature that V2
lacks) is not known here; the span of each request names the runner that it really ran under.
"""

from __future__ import annotations

import json
import logging

from corevital.engines import vllm_names


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
    runner = vllm_names.runner(VllmConfig())
    shown = runner == "v1" or len(vllm_names.processor_bases()) > 1
    return {"runner": runner, "why": " ".join(dict.fromkeys(reasons.lines)), "shown": shown}


if __name__ == "__main__":
    print(json.dumps(choice()))  # noqa: T201 - its output
