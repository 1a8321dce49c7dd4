"""Finds the scheduler of each engine core that uses our processor, and wraps its methods.

``Scheduler`` exists only in the core's process, with every frontend and both model runners. vLLM loads plugins there
before it creates the scheduler. The wrappers are on the class: on the instance, they would make a reference cycle.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, Final

from corevital.engines.protocol import Host
from corevital.engines.vllm import names
from corevital.engines.vllm.core.watch import Watch
from corevital.engines.vllm.facts import Running
from corevital.engines.vllm.hooks import on_class
from corevital.guard import guarded
from corevital.log import warn_once

_SCHEDULER: Final = "vllm.v1.core.sched.scheduler"
_CORE: Final = "vllm.v1.engine.core"
_MARK: Final = "_corevital"
_WATCH: Final = "_corevital_watch"
"""The attribute that holds a scheduler's :class:`Watch`."""
_NEEDED: Final = ("add_request", "_free_request")


def in_a_core() -> bool:
    """Whether this process has loaded the engine core's module, so it may be a core."""
    return _CORE in sys.modules


@guarded("the start of the engine core")
def follow_cores(host: Host[Running], is_used: Callable[[Any], bool]) -> None:
    """Watch each scheduler that is created from now on. Idempotent.

    Args:
        host: the telemetry half.
        is_used: whether a ``VllmConfig`` names our processor.
    """
    try:
        scheduler = importlib.import_module(_SCHEDULER).Scheduler
    except (ImportError, AttributeError):
        warn_once(
            "core",
            "vLLM %s has no v1 Scheduler: only requests of vLLM's Python frontend are measured",
            names.version(),
        )
        return
    original = scheduler.__init__
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        config = kwargs.get("vllm_config", args[0] if args else None)
        if is_used(config):
            _watch(self, config, host)

    setattr(init, _MARK, True)
    scheduler.__init__ = init


@guarded("the start of the engine core")
def _watch(scheduler: Any, config: Any, host: Host[Running]) -> None:
    missing = [name for name in _NEEDED if not callable(getattr(scheduler, name, None))]
    if missing:
        warn_once(
            "core",
            "vLLM %s has no Scheduler.%s: only requests of vLLM's Python frontend are measured",
            names.version(),
            missing[0],
        )
        return
    core = host.core(Running(None, config))
    if core is None:
        return
    scheduler.__dict__[_WATCH] = Watch(scheduler, config, core)
    owner = type(scheduler)
    _before(owner, "add_request", Watch.adds)
    _after(owner, "_free_request", lambda watch, _result, request, *args, **kwargs: watch.frees(request))
    _after(owner, "schedule", lambda watch, result, *args, **kwargs: watch.scheduled(result))
    _after(owner, "update_from_output", lambda watch, *args, **kwargs: watch.updated())
    _before(owner, "shutdown", Watch.ends)


def _before(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    def wrap(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            watch = self.__dict__.get(_WATCH)
            if watch is not None:
                ours(watch, *args, **kwargs)
            return original(self, *args, **kwargs)

        return call

    _around(owner, name, wrap)


def _after(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    def wrap(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            watch = self.__dict__.get(_WATCH)
            if watch is not None:
                ours(watch, result, *args, **kwargs)
            return result

        return call

    _around(owner, name, wrap)


def _around(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    if not hasattr(owner, name):
        warn_once(f"core:{name}", "vLLM has no Scheduler.%s: what it reports is missing in spans", name)
    on_class(owner, name, wrap)
