"""How a shard loads us: its import hook calls :func:`register` where ``COREVITAL_ATTACH`` names TGI."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from corevital.engines.protocol import Host
from corevital.engines.tgi import names
from corevital.guard import guarded
from corevital.log import configure, warn_once

if TYPE_CHECKING:
    from corevital.engines.tgi.engine import Running

_MARK: Final = "_corevital"


def register(host: Host[Running]) -> None:
    """Follow the service that this shard is about to make. Idempotent.

    Raises:
        SystemExit: see :meth:`Host.prepare`.
    """
    configure()
    lacks = names.missing()
    if lacks is not None:
        warn_once(
            "tgi",
            "nothing is measured: this TGI has no %s; corevital measures TGI 3 and was checked on 3.3.7",
            lacks,
        )
        return
    if not host.prepare():
        return
    service = names.module("server").TextGenerationService
    original = service.__init__
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _started(self, host)

    setattr(init, _MARK, True)
    service.__init__ = init


@guarded("the start of the shard")
def _started(service: Any, host: Host[Running]) -> None:
    from corevital.engines.tgi.engine import Running, follow, reports

    if not reports(service.model)(0):
        return
    running = Running(service)
    core = host.core(running)
    if core is None:
        return
    follow(running, core.hub, content=core.content, hash_key=core.hash_key)
    core.hub.want()  # so that its port is open, and its line in the log, before the first request
