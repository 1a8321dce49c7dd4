"""The entry point vLLM loads in every process, and the only place where the two halves meet.

Installed and not asked for, it changes nothing: :func:`register` puts one call in front of
``EngineArgs.create_model_config``, which looks for our name among ``--logits-processors``. Only where it finds it do
settings get read, engines followed and frames received.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
import weakref
from typing import Any

from corevital.engines import vllm_names
from corevital.guard import guarded

_MARK = "_corevital"


def register() -> None:
    """Entry point ``vllm.general_plugins``: teach vLLM the name ``corevital``. Idempotent."""
    try:
        from vllm.engine.arg_utils import EngineArgs

        create_model_config = EngineArgs.create_model_config
    except (ImportError, AttributeError):
        from corevital.log import configure, warn_once

        configure()
        warn_once(
            "register", "this vLLM has no EngineArgs.create_model_config: the name 'corevital' is not known to it"
        )
        return
    if hasattr(create_model_config, _MARK):
        return

    @functools.wraps(create_model_config)
    def with_our_name(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(_is_ours(name) for name in self.logits_processors or ()):
            self.logits_processors = _resolve(self.logits_processors, getattr(self, "otlp_traces_endpoint", None))
        return create_model_config(self, *args, **kwargs)

    setattr(with_our_name, _MARK, True)
    EngineArgs.create_model_config = with_our_name  # type: ignore[method-assign]


def _is_ours(name: object) -> bool:
    if isinstance(name, type):
        return f"{name.__module__}:{name.__qualname__}" == vllm_names.CLASS_PATH
    return name in (vllm_names.NAME, vllm_names.CLASS_PATH)


def _resolve(names: list[Any], traces_endpoint: str | None = None) -> list[Any] | None:
    """Our name replaced by our class, once; or taken out where ``COREVITAL_ENABLED=0``. Follows engines from here on.

    Args:
        names: the engine's logits processors.
        traces_endpoint: where the engine's own tracing sends spans.

    Raises:
        SystemExit: a setting or an ``OTEL_*`` variable is wrong; its text is the one line for the user.
    """
    from corevital import log
    from corevital_otel import environment
    from corevital_otel.settings import SettingsError, unknown

    try:
        settings = environment.require(engine_endpoint=traces_endpoint)
        if settings.log_format == "json":
            os.environ[log.FORMAT_VARIABLE] = "json"  # wherever it was set: worker processes read no settings
        if settings.enabled:
            environment.tidy()
        from corevital_otel.risk.bases import profile_of

        profile_of(settings)
    except SettingsError as error:
        sys.exit(f"corevital: {error}")
    if settings.enabled:
        log.configure()
        for line in (*unknown(), *environment.notes()):
            log.warn_once(line, "%s", line)
        vllm_names.warn_if_unchecked()
        _follow_engines()
    wanted = [name for name in names if not _is_ours(name)]
    if settings.enabled:  # once, where it was named first
        first = next(i for i, name in enumerate(names) if _is_ours(name))
        wanted.insert(first, vllm_names.CLASS_PATH)
    return wanted or None


@guarded("the start of the frontend")
def _follow_engines() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    for engine in (AsyncLLM, LLMEngine):
        original = engine.__init__
        if not hasattr(original, _MARK):
            engine.__init__ = _followed(original)  # type: ignore[method-assign]


def _followed(original: Any) -> Any:
    @functools.wraps(original)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        env = dict(os.environ)  # vLLM's own tracing writes its endpoint over the user's
        original(self, vllm_config, *args, **kwargs)
        _engine_started(self, vllm_config, env)

    setattr(init, _MARK, True)
    return init


@guarded("the start of the frontend")
def _engine_started(engine: Any, vllm_config: Any, env: dict[str, str]) -> None:
    if not any(_is_ours(name) for name in vllm_config.model_config.logits_processors or ()):
        return
    from corevital import log
    from corevital.engines.vllm_frontend import attach, served_name
    from corevital_otel import startup
    from corevital_otel.destination import destination
    from corevital_otel.hub import Hub
    from corevital_otel.settings import load

    traces = vllm_names.traces_endpoint(vllm_config)
    settings, where = load(), destination(env, traces)
    model, facts = served_name(vllm_config.model_config), vllm_names.facts(vllm_config)
    hub = Hub(settings, model, engine=facts, where=where, engine_traces=traces is not None)
    if traces is not None:
        vllm_names.leave_tokens_to_us()
    if attach(engine, vllm_config, hub, content=settings.capture_content, hash_key=settings.prompt_hash_key):
        hub.start()
        log.configure()
        kernel = _kernel(str(facts.get("device.type", "")))
        logging.getLogger(log.LOGGER_NAME).info("%s", startup.line(settings, model, facts, kernel, where))
        weakref.finalize(engine, hub.close)  # an engine made anew in the same process gets a new one


def _kernel(device: str) -> str:
    """The backend that the workers choose on this device; one that fails to start there is said by them."""
    best = {"cuda": "triton", "cpu": "numba"}.get(device, "torch")
    return best if importlib.util.find_spec(best) is not None else "torch"
