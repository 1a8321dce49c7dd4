"""What is known of a running SGLang: from its scheduler."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from corevital.engines.protocol import Facts, reported
from corevital.engines.sglang.names import version
from corevital.frames.layout import Source

ENGINE: Final = "sglang"
RUNNER: Final = "srt"
"""SGLang has one model runner, of its runtime ``srt``."""
STAGES: Final = {RUNNER: "pre_grammar"}
SOURCE: Final = Source(ENGINE, RUNNER, STAGES[RUNNER])


class Running(NamedTuple):
    """An engine in the process of one of its schedulers.

    Attributes:
        scheduler: a ``Scheduler`` that has loaded its model.
    """

    scheduler: Any

    @property
    def args(self) -> Any:
        """Its ``ServerArgs``."""
        return self.scheduler.server_args

    @property
    def runner(self) -> Any:
        """Its ``ModelRunner``."""
        return self.scheduler.tp_worker.model_runner


def facts(running: Running) -> Facts:
    """See :class:`corevital.engines.protocol.Facts`; what this SGLang does not report is left out."""
    args, runner = running.args, running.runner
    device = str(getattr(runner, "device", "") or getattr(args, "device", "")).split(":", maxsplit=1)[0]
    found: dict[str, Any] = {
        "engine.name": ENGINE,
        "engine.version": version(),
        "engine.runner": RUNNER,
        "engine.dtype": str(getattr(runner, "dtype", "")).removeprefix("torch."),
        "engine.quantization": getattr(args, "quantization", None),
        "engine.max_model_len": getattr(getattr(running.scheduler, "model_config", None), "context_len", None),
        "engine.tensor_parallel_size": getattr(args, "tp_size", None),
        "engine.pipeline_parallel_size": getattr(args, "pp_size", None),
        "engine.data_parallel_size": getattr(args, "dp_size", None),
        "device.type": device,
    }
    if device == "cuda":
        import torch

        found["device.name"] = torch.cuda.get_device_name()
        found["device.memory_bytes"] = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return Facts(
        model=served_name(args),
        source=SOURCE,
        resource=reported(found),
        tokenizer=(str(getattr(args, "tokenizer_path", None) or args.model_path), getattr(args, "revision", None)),
    )


def served_name(args: Any) -> str:
    """The name a model is served under."""
    return str(getattr(args, "served_model_name", None) or args.model_path)
