"""How SGLang loads us, and whether it was asked to.

SGLang calls every plugin in each of its processes as soon as it is installed. Without ``COREVITAL_ATTACH=sglang`` we
change nothing. With it, the first process checks the settings and this SGLang, and logs what is wrong; the processes
that it starts inherit its decision. Each hooks its own methods: a hook on a module that is not loaded would load it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from corevital.attach import wanted, withdraw
from corevital.engines.protocol import Host
from corevital.engines.sglang import frontend, names, start
from corevital.engines.sglang.facts import ENGINE, Running
from corevital.engines.sglang.watch import take_origin
from corevital.frames.engine_key import VARIABLE, share
from corevital.guard import guarded
from corevital.log import configure, warn_once

_WORKERS: Final = "corevital.engines.sglang.workers:app"


def register(host: Host[Running]) -> None:
    """Hook this process's part of SGLang, if SGLang is to be measured.

    Raises:
        SystemExit: see :meth:`Host.prepare`.
    """
    if not wanted(ENGINE):
        return
    configure()
    if VARIABLE in os.environ:  # the process that has started this one has decided
        _hook(host, [target for target in names.NEEDED if _is_loaded(target)])
    elif _can_measure(host):
        share(headless=False)
        os.environ.setdefault(names.APP_PATH, _WORKERS)
        _hook(host, names.NEEDED)
    else:
        withdraw(ENGINE)


def _can_measure(host: Host[Running]) -> bool:
    """Whether this SGLang can be measured, and is to be. False after one line, if it is not switched off."""
    if not host.prepare() or names.is_too_old():
        return False
    lacking = names.missing(names.NEEDED)
    if lacking is not None:
        warn_once("names", "SGLang %s has no %s: it serves unobserved; install a tested version",
                  names.version(), lacking)  # fmt: skip
    return lacking is None


def _is_loaded(target: str) -> bool:
    return target.rsplit(".", 2)[0] in sys.modules


def _hook(host: Host[Running], targets: Iterable[str]) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def started(_result: Any, scheduler: Any, *_args: Any, **_kwargs: Any) -> None:
        _started(host, scheduler)

    before, after = HookType.BEFORE, HookType.AFTER
    hooks: dict[str, tuple[Callable[..., Any], Any]] = {
        names.START: (started, after),
        names.ADDED: (_added, before),
        names.ENDED: (_watched(lambda watch: watch.ends), before),
        names.ABORTED: (_watched(lambda watch: watch.aborted), after),
        names.CALLED: (frontend.called, before),
        names.VALIDATED: (frontend.validated, before),
        names.SENT: (frontend.sent, before),
        names.SENT_MANY: (frontend.sent_many, before),
    }
    for target in targets:
        HookRegistry.register(target, *hooks[target])
    if names.START in targets and names.missing((names.RUST_ABORTED,)) is None:
        HookRegistry.register(names.RUST_ABORTED, *hooks[names.ABORTED])
    if _is_loaded(names.OWN_SPANS):
        if names.missing((names.OWN_SPANS,)) is None:
            HookRegistry.register(names.OWN_SPANS, frontend.without_usage, after)
        else:
            warn_once("usage", "SGLang %s makes its spans in an unknown way, so with --enable-trace its spans and ours "
                      "both count each token: sum only corevital.* attributes", names.version())  # fmt: skip


def _watched(method: Callable[[Any], Callable[..., None]]) -> Callable[..., None]:
    """A hook that calls a method of the watch, once there is one."""

    def hook(*args: Any, **kwargs: Any) -> None:
        for watch in start.watches:
            method(watch)(*args, **kwargs)

    return hook


@guarded("the scheduler's process_req_with_grammar")
def _added(manager: Any, req: Any, *_args: Any, **_kwargs: Any) -> None:
    """A sequence arrives. Also where it is not followed, its processors see only what the client sent."""
    for watch in start.watches:
        watch.adds(manager, req)
        return
    take_origin(req.sampling_params)


@guarded("the start of the scheduler")
def _started(host: Host[Running], scheduler: Any) -> None:
    running = Running(scheduler)
    if not start.reports(running)(0) or not start.can_observe(running):
        return
    core = host.core(running)
    if core is None:
        return
    if start.follow(running, core.hub, content=core.content, hash_key=core.hash_key):
        core.hub.want()  # so that its port is open before the first request
