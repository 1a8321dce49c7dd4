"""The entry points that engines load, and the only place where the two halves meet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeAlias

from corevital.engines.protocol import CoreHost, Engine, Running
from corevital.engines.sglang import engine as sglang
from corevital.engines.tgi import engine as tgi
from corevital.engines.transformers import engine as transformers
from corevital.engines.vllm import engine as vllm
from corevital.frames.lifecycle import Observer
from corevital.frames.remote_hub import RemoteHub
from corevital.guard import guarded
from corevital.log import configure, warn_once
from corevital.supported import STOPPING, likely_kernel

if TYPE_CHECKING:
    from corevital_otel.report import RequestReport

Report: TypeAlias = "RequestReport"
"""What a library interface gives its caller for each sequence."""


def register() -> None:
    """Entry point ``vllm.general_plugins``. Idempotent."""
    vllm.register(Telemetry(vllm))


def register_sglang() -> None:
    """Entry point ``sglang.srt.plugins``."""
    sglang.register(Telemetry(sglang))


def register_tgi() -> None:
    """What the ``.pth`` file's loader calls in a shard of TGI. Idempotent."""
    tgi.register(Telemetry(tgi))


def prepare_library() -> bool:
    """Check the settings for a library interface. Returns whether to measure: False where ``COREVITAL_ENABLED=0``.

    Raises:
        ValueError: a setting or an ``OTEL_*`` variable is wrong; its text is the one line for the user.
    """
    from corevital_otel import service

    return service.prepare().enabled


def start_library(running: transformers.Running, on_report: Callable[[Report], None]) -> Callable[[], None] | None:
    """Measure a model in this process, for a program that wants the reports itself. Never raises.

    Args:
        running: the model.
        on_report: called with each report, in the hub's thread.

    Returns:
        What ends it.
    """
    return Telemetry(transformers, on_report).start(running, os.environ)


class Telemetry(Generic[Running]):
    """The telemetry half, for one engine. See :class:`corevital.engines.protocol.Host`.

    Args:
        engine: the engine.
        on_report: called with each report, where the program that generates wants them itself.
    """

    def __init__(self, engine: Engine[Running, Any, Any], on_report: Callable[[Report], None] | None = None) -> None:
        self._engine = engine
        self._on_report = on_report

    def prepare(self, own_traces: str | None = None) -> bool:
        """See :meth:`corevital.engines.protocol.Host.prepare`."""
        from corevital_otel import service

        try:
            return service.prepare(own_traces).enabled
        except service.SettingsError as error:
            sys.exit(f"corevital: {error}")

    @guarded("the start of telemetry")
    def start(self, running: Running, env: Mapping[str, str]) -> Callable[[], None] | None:
        """See :meth:`corevital.engines.protocol.Host.start`."""
        from corevital_otel import service

        def follow(observer: Observer, settings: service.Settings) -> bool:
            if settings.stops and facts.resource.get("engine.name") not in STOPPING:
                warn_once("stop_on", "COREVITAL_STOP_ON has no effect: only vLLM can end a sequence early")
            content, key = settings.capture_content, settings.prompt_hash_key
            return self._engine.follow(running, observer, content=content, hash_key=key)

        facts = self._engine.facts(running)
        return service.start(
            follow,
            model=facts.model,
            facts=facts.resource,
            kernel=likely_kernel(str(facts.resource.get("device.type", ""))),
            env=env,
            engine_endpoint=facts.own_traces,
            on_report=self._on_report,
            protect=facts.protect,
            tokenizer=facts.tokenizer,
        )

    @guarded("the start of telemetry")
    def core(self, running: Running) -> CoreHost | None:
        """See :meth:`corevital.engines.protocol.Host.core`."""
        from corevital_otel import service

        configure()
        settings = service.load()  # checked where the engine was started
        if not settings.enabled:
            return None
        configure()
        facts = self._engine.facts(running)
        kernel = likely_kernel(str(facts.resource.get("device.type", "")))
        keeper = service.HubKeeper(facts.model, facts.resource, kernel)
        hub = RemoteHub(*facts.tokenizer, wanted=keeper.start)
        return CoreHost(
            hub,
            settings.capture_content,
            settings.prompt_hash_key,
            settings.stops,
            lambda: service.LoopCheck(settings.loop_tokens),
        )
