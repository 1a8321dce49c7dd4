"""``corevital doctor``: checks what serving needs. One line per check, each failure with its fix."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import typer
from rich.text import Text

from corevital.text import printable
from corevital_otel import __version__
from corevital_otel.cli import engine_table, engines, frontend
from corevital_otel.cli.check import Check
from corevital_otel.cli.collector import Items, answer
from corevital_otel.cli.common import console, print_text
from corevital_otel.cli.scrape import NoServerError, Page, ScrapeError, base, scrape
from corevital_otel.otlp import sampler
from corevital_otel.otlp.destination import Destination, destination, logs_destination, shown
from corevital_otel.otlp.variables import given
from corevital_otel.risk.bases import profile_of, watch_of
from corevital_otel.service.environment import Problem, notes
from corevital_otel.settings import HTTP_OF_A_HUB, Settings, SettingsError, load, unknown
from corevital_otel.store import schema
from corevital_otel.store.reader import StoreError, StoreReader

_CONNECT_S: Final = 2.0
_CAUSE: Final = 200
"""Characters of the system's error text."""
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_LOGS: Final = "OTLP logs"
_DEFAULT_URL: Final = "http://localhost:8000"
_SIGNS: Final = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red"), "none": ("-", "dim")}


def run(*, url: str | None, as_json: bool, db: Path | None, problems: Sequence[Problem]) -> None:
    """See :func:`corevital_otel.cli.app.doctor`.

    Args:
        url: the server whose metrics are read.
        as_json: print JSON.
        db: the store.
        problems: of the environment, found before OpenTelemetry was imported.
    """
    screen, engine = console(), engines.installed()
    waiting = nullcontext() if as_json else screen.status(f"asking {engine.name} for its model runner (some seconds)")
    table = engine_table.rows()
    checks = [row.check() for row in table]
    if not as_json:
        screen.print(engine_table.picture(table, _SIGNS))
        screen.print()
    with waiting, engines.asked(engine) as process:
        # a serving engine that is not installed fails its checks: unless a program's own is
        serves = process is not None or not any(row.is_installed for row in table)
        for check in _checks(engine if serves else None, url, db, problems, process):
            checks.append(check)
            if not as_json:
                sign, style = _SIGNS[check.status]
                line = Text(f"{sign} {check.name}: ", style=style).append(printable(check.text), style="default")
                screen.print(line, soft_wrap=True)
    if as_json:
        print_text(json.dumps([asdict(check) for check in checks], indent=2))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def _checks(
    engine: engines.Engine | None,
    url: str | None,
    db: Path | None,
    problems: Sequence[Problem],
    process: subprocess.Popen[str] | None,
) -> Iterator[Check]:
    yield Check("corevital", "ok", f"{__version__} on Python {sys.version.split()[0]}")
    yield from engine_table.unknown()
    if engine is not None:
        yield engines.version(engine)
        yield engines.entry_point(engine)
        yield frontend.check(engine, url or _DEFAULT_URL)
    for attached in engines.attached():
        yield from engines.of_attached(attached)
    yield _kernel()
    yield from _of_settings(db, problems)
    yield _metrics(url)
    if engine is not None:
        yield engines.model_runner(engine, process)  # last: the engine is imported while the others run


def _of_settings(db: Path | None, problems: Sequence[Problem]) -> Iterator[Check]:
    exporting = [problem for problem in problems if problem.name.startswith("OTEL_")]
    settings: Settings | None = None
    try:
        settings = load()
    except SettingsError:
        yield from (Check("settings", "fail", problem.text) for problem in problems if problem not in exporting)
    if settings is not None:
        strange = [*unknown(), *filter(None, [sampler.choose(settings).unsupported])]
        text = "; ".join((_settings_text(settings), *strange))
        yield Check("settings", "ok" if settings.enabled and not strange else "warn", text)
        yield _risk(settings)
        yield from _hub(settings)
    yield from (Check("OTLP", "fail", problem.text) for problem in exporting)
    if settings is not None:
        if not exporting:
            yield _exporter()
            yield _logs()
        try:
            yield _store(db or settings.db)
        except (OSError, ValueError) as error:  # such as an invalid file name, or an edited row
            cause = printable(getattr(error, "strerror", None) or error, _CAUSE)
            yield Check("store", "fail", f"{db or settings.db} cannot be read ({cause}): set COREVITAL_DB elsewhere")


def _kernel() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("kernel", "fail", "torch is not installed: it comes with the engine")
    if importlib.util.find_spec("numba") is None:
        return Check("kernel", "warn", "numba is missing, so a CPU uses the slower torch backend: pip install numba")
    return Check("kernel", "ok", "numba on a CPU, Triton on a GPU")


def _settings_text(settings: Settings) -> str:
    if not settings.enabled:
        return "COREVITAL_ENABLED=0: the plugin is loaded and does nothing"
    drawn = sampler.choose(settings).text
    return f"capture {settings.capture}, {drawn}, risk threshold {settings.risk_threshold:g}"


def _risk(settings: Settings) -> Check:
    try:
        profile = profile_of(settings)
    except SettingsError as error:
        return Check("risk", "fail", str(error))
    if profile is None:
        return Check("risk", "ok", f"basis {settings.risk_basis}: COREVITAL_PROFILE is not set")
    watched = f", alarm on {profile.alarm.signal}" if watch_of(settings, profile) and profile.alarm else ", no alarm"
    origin = f" of {profile.origin()}" if profile.origin() else ""
    return Check("risk", "ok", f"calibrated on {profile.runs} runs{origin}, {profile.bad} of them bad{watched}")


def _hub(settings: Settings) -> Iterator[Check]:
    key = "set" if settings.hub_key else "not set"
    where = settings.hub or "COREVITAL_HUB is not set: this host has its own"
    yield Check("hub", "ok" if settings.hub else "none", f"{where}; COREVITAL_HUB_KEY is {key}")
    token = "set" if settings.http_token else "not set"
    port = settings.http or f"COREVITAL_HTTP is not set: {HTTP_OF_A_HUB} in a hub process, else none"
    yield Check("HTTP port", "ok" if settings.http_address() else "none", f"{port}; COREVITAL_HTTP_TOKEN is {token}")


def _metrics(url: str | None) -> Check:
    where = base(url or _DEFAULT_URL)
    try:
        page, where = _page(where)
    except NoServerError as error:
        if url is not None:
            return Check("metrics", "fail", str(error))
        return Check("metrics", "none", f"no server at {_DEFAULT_URL}: name one with --url")
    except ScrapeError as error:
        return Check("metrics", "warn" if url is None else "fail", str(error))
    served = (
        f"{page.total('corevital_requests_total'):.0f} requests and {page.total('corevital_tokens_total'):.0f} tokens"
    )
    return Check("metrics", "ok", f"{shown(where)}/metrics: {served} since the server's start")


def _page(where: str) -> tuple[Page, str]:
    """The server's page, or that of the hub where the server answers without corevital metrics; and its URL.

    Raises:
        ScrapeError: neither has them.
    """
    try:
        return scrape(where), where
    except NoServerError:
        raise
    except ScrapeError as error:
        try:
            return frontend.hub_page(os.environ), frontend.hub_url(os.environ) or where
        except ScrapeError:
            raise error from None


def _exporter() -> Check:
    if lines := notes():
        return Check("OTLP", "warn", "; ".join(lines))
    try:
        where = destination()
    except SettingsError as error:
        return Check("OTLP", "fail", str(error))
    return _not_sent() if where is None else _collector("OTLP", where, "spans")


def _logs() -> Check:
    """Where log records go: those of exported spans."""
    try:
        spans, where = destination(), logs_destination()
    except SettingsError as error:
        return Check(_LOGS, "fail", str(error))
    if spans is None:
        return Check(_LOGS, "none", "no spans are sent, so evaluations have no log records")
    if where is None:
        return Check(_LOGS, "none", "no endpoint, or OTEL_LOGS_EXPORTER turns logs off: evaluations are on spans only")
    return _collector(_LOGS, where, "log records")


def _collector(name: str, where: Destination, items: Items) -> Check:
    try:
        address = _address(where.url, where.protocol)
    except ValueError as error:
        return Check(name, "fail", str(error))
    try:
        if address is not None:
            socket.create_connection(address, timeout=_CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        fix = "start the collector, or fix OTEL_EXPORTER_OTLP_ENDPOINT"
        cause = printable(getattr(error, "strerror", None) or error, _CAUSE)
        return Check(name, "fail", f"{where.endpoint} cannot be reached by {where.protocol} ({cause}): {fix}")
    status, text = answer(where, items=items)
    return Check(name, status, f"{where.endpoint} by {where.protocol}{text}")


def _not_sent() -> Check:
    if not (given(os.environ, _ENDPOINT) or given(os.environ, _TRACES_ENDPOINT)):
        return Check("OTLP", "none", f"{_ENDPOINT} is not set: spans go to the store only")
    return Check("OTLP", "none", "OTEL_TRACES_EXPORTER or OTEL_SDK_DISABLED turns spans off: they go to the store only")


def _address(target: str, wire: str) -> tuple[str, int] | None:
    """Host and port that the exporter would connect to; None for a gRPC target of another form."""
    parts = urlsplit(target if "://" in target else f"//{target}")
    if not parts.hostname or parts.scheme in ("unix", "dns", "ipv4", "ipv6", "xds", "vsock"):
        return None
    # 4317 and 4318 are the ports of the default endpoint; gRPC uses 443 with every scheme
    return parts.hostname, parts.port or (80 if wire != "grpc" and parts.scheme == "http" else 443)


def _store(path: Path | None) -> Check:
    if path is None:
        return Check("store", "none", "COREVITAL_DB is empty: no store")
    if not path.exists():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        try:
            tempfile.TemporaryFile(dir=folder).close()  # permissions alone are not enough: a file system may refuse
        except OSError as error:
            return Check("store", "fail", f"{path} cannot be created ({error.strerror}): set COREVITAL_DB elsewhere")
        return Check("store", "ok", f"{path} will be created at the first request")
    if not os.access(path, os.W_OK):
        return Check("store", "fail", f"{path} is not writable: fix its permissions, or set COREVITAL_DB elsewhere")
    try:
        reader = StoreReader(path)
        count, last, undelivered = reader.count(), reader.list_reports(limit=1), reader.undelivered()
    except StoreError as error:
        return Check("store", "fail", str(error))
    text = f"{path}: schema {schema.VERSION}, {count} reports, {path.stat().st_size / 1e6:.1f} MB"
    if last:
        text += f", the last at {last[0].created_at_utc} under {last[0].summary.get('corevital.runner', 'unknown')}"
    if undelivered:
        text += f"; {undelivered} spans were not delivered: corevital db export --otlp"
    return Check("store", "warn" if undelivered else "ok", text)
