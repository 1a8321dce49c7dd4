"""How vLLM loads us, and whether it was asked to.

vLLM calls every plugin in each of its processes. Installed and not asked for, we change nothing: one call in front of
``EngineArgs.create_model_config`` looks for our name among ``--logits-processors``, and one behind
``Scheduler.__init__`` among the configuration's. Where it is, settings are checked and engines and cores followed.
"""

from __future__ import annotations

import functools
import os
import sys
import weakref
from typing import Any, Final

from corevital.engines.protocol import Host
from corevital.engines.vllm import nan_counts
from corevital.engines.vllm.core.register import follow_cores, in_a_core
from corevital.engines.vllm.facts import Running
from corevital.engines.vllm.names import warn_if_unchecked
from corevital.frames.engine_key import share
from corevital.guard import guarded
from corevital.supported import STOP_ON_VARIABLE

CLASS_PATH: Final = "corevital.engines.vllm:LogitsProcessor"
"""What the name ``corevital`` stands for on vLLM's command line."""

_NAME: Final = "corevital"
_MARK: Final = "_corevital"


def register(host: Host[Running]) -> None:
    """Teach vLLM the name ``corevital``, and follow the engine core of this process. Idempotent."""
    if in_a_core():
        follow_cores(host, _uses_us)
    try:
        from vllm.engine.arg_utils import EngineArgs

        create_model_config = EngineArgs.create_model_config
    except (ImportError, AttributeError):
        from corevital.log import configure, warn_once

        configure()
        warn_once(
            "register",
            "this vLLM has no EngineArgs.create_model_config: use --logits-processors %s in place of the name %s",
            CLASS_PATH,
            _NAME,
        )
        return
    if hasattr(create_model_config, _MARK):
        return

    @functools.wraps(create_model_config)
    def with_our_name(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(_is_ours(name) for name in self.logits_processors or ()):
            own_traces = getattr(self, "otlp_traces_endpoint", None)
            self.logits_processors = resolve(self.logits_processors, host, own_traces)
        return create_model_config(self, *args, **kwargs)

    setattr(with_our_name, _MARK, True)
    EngineArgs.create_model_config = with_our_name


def _is_ours(name: object) -> bool:
    if isinstance(name, type):
        return f"{name.__module__}:{name.__qualname__}" == CLASS_PATH
    return name in (_NAME, CLASS_PATH)


def _uses_us(config: Any) -> bool:
    return any(_is_ours(name) for name in config.model_config.logits_processors or ())


def _is_headless() -> bool:
    """Whether this process starts engines for a frontend on another host."""
    return "--headless" in sys.argv


def resolve(names: list[Any], host: Host[Running], own_traces: str | None = None) -> list[Any] | None:
    """Our name replaced by our class, once; or taken out where ``COREVITAL_ENABLED=0``. Follows engines from here on.

    Args:
        names: the engine's logits processors, ours among them.
        host: checks the settings, and is called with engines that have started.
        own_traces: where vLLM's own tracing sends spans.

    Raises:
        SystemExit: see :meth:`Host.prepare`.
    """
    wanted = [name for name in names if not _is_ours(name)]
    if host.prepare(own_traces):
        warn_if_unchecked()
        share(headless=_is_headless())
        if "nan" in os.environ.get(STOP_ON_VARIABLE, ""):
            nan_counts.always()
        _follow_engines(host)
        follow_cores(host, _uses_us)
        first = next(i for i, name in enumerate(names) if _is_ours(name))
        wanted.insert(first, CLASS_PATH)
    return wanted or None


@guarded("the start of the frontend")
def _follow_engines(host: Host[Running]) -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    for engine in (AsyncLLM, LLMEngine):
        original = engine.__init__
        if not hasattr(original, _MARK):
            engine.__init__ = _followed(original, host)


def _followed(original: Any, host: Host[Running]) -> Any:
    @functools.wraps(original)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        env = dict(os.environ)  # vLLM's own tracing overwrites the user's endpoint
        original(self, vllm_config, *args, **kwargs)
        _started(host, Running(self, vllm_config), env)

    setattr(init, _MARK, True)
    return init


@guarded("the start of the frontend")
def _started(host: Host[Running], running: Running, env: dict[str, str]) -> None:
    if not _uses_us(running.config):
        return
    close = host.start(running, env)
    if close is not None:
        weakref.finalize(running.engine, close)  # a later engine in this process gets its own telemetry
