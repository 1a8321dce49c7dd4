"""The start of the telemetry half, for an engine's entry point. Imports the SDK only once the variables are checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from corevital import log
from corevital.frames.lifecycle import Observer
from corevital.supported import STOP_ON_VARIABLE
from corevital_otel import __version__
from corevital_otel.otlp import sampler
from corevital_otel.otlp.destination import Destination, destination
from corevital_otel.otlp.variables import tidy
from corevital_otel.service import environment
from corevital_otel.settings import Settings, load, unknown

if TYPE_CHECKING:
    from corevital_otel.http.engine_route import Protect
    from corevital_otel.otlp.resource import Facts
    from corevital_otel.report import RequestReport


_HUB_STARTS_S: Final = 15.0
"""How long an engine's start may wait for the hub."""


def prepare(engine_endpoint: str | None = None) -> Settings:
    """Check the settings and the ``OTEL_*`` variables, and log what is ignored. Idempotent.

    Args:
        engine_endpoint: where the engine's own tracing sends spans.

    Raises:
        SettingsError: one is wrong; its text is the one line for the user.
    """
    settings = environment.require(engine_endpoint=engine_endpoint)
    if settings.log_format == "json":
        os.environ[log.FORMAT_VARIABLE] = "json"  # even if set in a file: workers read no settings
    if settings.stop_on is not None:  # likewise
        os.environ[STOP_ON_VARIABLE] = settings.stop_on
    if settings.hub is not None:  # likewise
        os.environ |= {"COREVITAL_HUB": settings.hub, "COREVITAL_HUB_KEY": settings.hub_key or ""}
    if settings.enabled:
        tidy()
    from corevital_otel.risk.bases import profile_of

    profile_of(settings)
    if settings.enabled:
        log.configure()
        unsupported = sampler.choose(settings).unsupported
        for text in (*unknown(), *filter(None, [unsupported]), *environment.notes()):
            log.warn_once(text, "%s", text)
    return settings


def start(
    attach: Callable[[Observer, Settings], bool],
    *,
    model: str,
    facts: Facts,
    kernel: str,
    env: Mapping[str, str],
    engine_endpoint: str | None = None,
    on_report: Callable[[RequestReport], None] | None = None,
    protect: Protect | None = None,
    tokenizer: tuple[str, str | None] = ("", None),
) -> Callable[[], None] | None:
    """Measure an engine's requests from here on.

    Args:
        attach: makes the engine report to an observer; False: it cannot.
        model: the name that the model is served under.
        facts: of the engine and its device, for the resource of spans and metrics.
        kernel: the backend that is to read the logits, for the log.
        env: the environment before the engine changed it.
        engine_endpoint: where the engine's own tracing sends spans; None: it makes none.
        on_report: a program's own receiver of reports, called in the hub's thread. There is a store then only where
            ``COREVITAL_DB`` names it: a program does not expect a file beside it.
        protect: puts the route to reports behind the key of the engine's own server; None: it has no such server.
        tokenizer: name or directory of the model's, empty where unknown, and its revision.

    Returns:
        What ends it, idempotent; None where the engine could not be attached.

    Raises:
        SettingsError: a setting or an ``OTEL_*`` variable is wrong.
    """
    from corevital_otel.service.keeper import HubKeeper
    from corevital_otel.service.loop import Hub
    from corevital_otel.service.port import open_port

    settings, where = load(), destination(env, engine_endpoint)
    if settings.process == "process":
        from corevital_otel.service import separate

        why = separate.obstacle(settings, engine_endpoint, on_report)
        if why is None:
            return separate.start(attach, settings, model, facts, kernel, tokenizer, exports=where is not None)
        log.configure()
        log.warn_once("process", "COREVITAL_PROCESS=process is ignored (%s): telemetry runs in a thread", why)
    if on_report is not None and "db" not in settings.model_fields_set:
        settings = settings.model_copy(update={"db": None})
    hub = Hub(
        settings,
        model,
        engine=facts,
        where=where,
        engine_traces=engine_endpoint is not None,
        on_report=on_report,
        protect=protect,
        tokenizer=tokenizer,
    )
    if not attach(hub, settings):
        return None
    hub.start()
    log.configure()
    logging.getLogger(log.LOGGER_NAME).info("%s", line(settings, model, facts, kernel, where))
    port = open_port(hub, settings) if settings.hub is None else None  # else the hub process has it
    keeper = None
    if settings.hub is not None:  # engines on other hosts send to it, and it passes on what is for this process
        keeper = HubKeeper(model, facts, kernel)
        keeper.start()
        keeper.wait(_HUB_STARTS_S)  # what those engines send before it listens comes too late for their first requests

    def close() -> None:
        if port is not None:
            port.close(1.0)
        hub.close()
        if keeper is not None:
            keeper.close()

    return close


def line(settings: Settings, model: str, engine: Facts, kernel: str, where: Destination | None) -> str:
    """The line in a server's log at its start: what is measured, how, and where it goes.

    Args:
        settings: the server's.
        model: the name it is served under.
        engine: facts of the engine and its device.
        kernel: the backend that is to read the logits.
        where: where spans go.
    """
    parts = (
        f"{engine['engine.name']} {engine['engine.version']}",
        f"runner {engine['engine.runner']}",
        f"kernel {kernel} on {engine.get('device.type', 'an unknown device')}",
        f"capture {settings.capture}",
        sampler.choose(settings).text,
        f"store {settings.db.absolute() if settings.db else 'none'}",
        f"spans to {f'{where.endpoint} by {where.protocol}' if where else 'no endpoint'}",
        _basis(settings),
        *([f"ends early on {', '.join(settings.stops)}"] if settings.stops else []),
        *(["text of flagged and risky outputs in the store"] if settings.stores_content else []),
    )
    return f"corevital {__version__} measures {model}: {', '.join(parts)}"


def _basis(settings: Settings) -> str:
    """What scores rest on, and what is watched while sequences run."""
    from corevital_otel.risk.bases import profile_of, watch_of

    profile = profile_of(settings)
    if profile is None:
        basis = "prior, then baseline" if settings.risk_basis == "auto" else settings.risk_basis
        return f"risk {basis}, no profile, no alarm"
    watch = watch_of(settings, profile)
    alarm = f"alarm on {watch[0]} at a rate of {settings.alarm_rate:g}" if watch else "no alarm"
    return f"risk calibrated, profile {settings.profile}, {alarm}"
