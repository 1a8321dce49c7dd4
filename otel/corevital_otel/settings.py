"""Settings: ``COREVITAL_*`` variables, over a TOML file named by ``COREVITAL_CONFIG``, over defaults.

An empty variable is an unset one, except ``COREVITAL_DB``, where it means no store.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from corevital.attach import ENGINES
from corevital.supported import CAPTURE_MODES, NO_STOP, STOP_ON, CaptureMode, stops_named
from corevital.text import printable
from corevital_otel import addresses, settings_file
from corevital_otel.addresses import Address
from corevital_otel.errors import SettingsError
from corevital_otel.settings_file import VARIABLE as _FILE

__all__ = [
    "AUTO",
    "BACKENDS",
    "HTTP_OF_A_HUB",
    "Backend",
    "Settings",
    "SettingsError",
    "describe",
    "load",
    "problems",
    "unknown",
]

Backend = Literal["langfuse", "openlit", "phoenix"]
"""Backends that get additional span attributes; see :mod:`corevital_otel.spans.backends`."""
BACKENDS: Final[tuple[Backend, ...]] = get_args(Backend)
AUTO: Final = "auto"
NONE: Final = "none"
HTTP_OF_A_HUB: Final = Address("127.0.0.1", 9464)
"""Where a hub process listens for HTTP, unless ``COREVITAL_HTTP`` says otherwise."""

_PREFIX: Final = "COREVITAL_"
_INTERNAL: Final = ("RAISE", "ENGINE_KEY", "LOG_LAUNCHER")
"""``COREVITAL_RAISE`` is for tests: see :mod:`corevital.guard`. An engine sets the others for its hub."""
_MAKE_SECRET: Final = "`openssl rand -hex 32`"  # noqa: S105 - a command, not a secret
_KEY_LENGTH: Final = 16
_SHOWN: Final = 80
"""Characters that are shown of a value or a name."""
_SECRETS: Final = frozenset(("key", "secret", "token", "password"))
"""A setting with one of these words in its name is never shown."""
_environment: ContextVar[Mapping[str, str] | None] = ContextVar("corevital_environment", default=None)


def _setting(default: Any, allowed: str, meaning: str, **constraints: Any) -> Any:
    return Field(default, description=meaning, json_schema_extra={"allowed": allowed}, **constraints)


class Settings(BaseSettings):
    """All settings. In a TOML file the names are lower case and without the prefix: ``capture = "full"``."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False)

    enabled: bool = _setting(
        True, "0 or 1", "`0`: the plugin is loaded but does nothing: tokens, latency and telemetry as without it"
    )
    attach: str | None = _setting(
        None,
        f"some of {', '.join(ENGINES)}, comma-separated",
        "engines that load plugins unasked and are to be measured, comma-separated: "
        f"{', '.join(f'`{name}`' for name in ENGINES)}; counts only in the environment",
    )
    capture: CaptureMode = _setting(
        "on_risk",
        f"one of {', '.join(CAPTURE_MODES)}",
        "`summary`, `full` (per-token series for every request) or `on_risk` (only at high risk or with a flag)",
    )
    sample_rate: float = _setting(
        1.0,
        "a number from 0 to 1",
        "share of requests kept, decided per request at admission; a caller's sampled flag overrides it; requests "
        "at high risk or with a flag are always kept; overrides `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`",
        ge=0,
        le=1,
    )
    risk_threshold: float = _setting(
        0.7, "a number from 0 to 1", "from here on a request is `high` and `on_risk` keeps its series", ge=0, le=1
    )
    high_entropy_bits: float = _setting(
        4.0,
        "a number from 0 to 32",
        "steps with more entropy than this count in `corevital.health.high_entropy_steps`",
        ge=0,
        le=32,
    )
    high_entropy_tokens: int = _setting(
        64,
        "a whole number from 8 to 100000",
        "a run of so many such steps is `sustained_high_entropy`; each other step subtracts two",
        ge=8,
        le=100_000,
    )
    collapse_tokens: int = _setting(
        64,
        "a whole number from 8 to 100000",
        "so many steps in a row with the same distribution are `distribution_collapsed`",
        ge=8,
        le=100_000,
    )
    loop_tokens: int = _setting(
        48,
        "a whole number from 8 to 256",
        "a repetition loop has so many matching tokens at least, and three copies of its period",
        ge=8,
        le=256,
    )
    db: Path | None = _setting(
        Path("runs/corevital.db"),
        "a file's path, or empty for none",
        "the embedded SQLite store, a new one with mode 0600; empty: none",
    )
    db_retention_days: float = _setting(
        30,
        "a number above 0, up to 36500",
        "the store prunes itself to this age, oldest first; a clock that is wrong by days deletes nothing",
        gt=0,
        le=36500,
    )
    db_max_mb: float = _setting(
        1024, "a number from 1 up", "the store prunes itself to this size, oldest rows first", ge=1, le=1e12
    )
    db_resend: bool = _setting(
        False,
        "0 or 1",
        "`1`: spans that the backend did not take wait in the store, also through a crash of the server, and this "
        "server or the next start sends them; needs a store",
    )
    db_resend_hours: float = _setting(
        24,
        "a number above 0, up to 8760",
        "with `COREVITAL_DB_RESEND=1`: a span whose request ended longer ago is given up, and counted",
        gt=0,
        le=8760,
    )
    db_resend_max_mb: float = _setting(
        256,
        "a number from 1 up",
        "with `COREVITAL_DB_RESEND=1`: spans that wait have so many megabytes in the store at most; the oldest are "
        "given up, and counted",
        ge=1,
        le=1e12,
    )
    profile: Path | None = _setting(
        None,
        "a file's path",
        "a calibration profile (`corevital calibrate`); the risk's basis is then `calibrated`",
    )
    risk_basis: Literal["auto", "prior", "baseline"] = _setting(
        "auto",
        "one of auto, prior, baseline",
        "the risk's basis without a profile: `prior`; `baseline`, and `unknown` until it has seen enough; or `auto`, "
        "`prior` until then",
    )
    baseline_alert_rate: float = _setting(
        0.05,
        "a number from 0.001 to 0.3",
        "share of a model's usual traffic that the basis `baseline` calls `high`",
        ge=0.001,
        le=0.3,
    )
    alarm_rate: float = _setting(
        0.05,
        "a number from 0 to 0.5",
        "share of good requests for which the profile's alarm may be raised; `0`: no alarm",
        ge=0,
        le=0.5,
    )
    stop_on: str | None = _setting(
        None,
        f"some of {', '.join(STOP_ON)}, comma-separated, or {NO_STOP}",
        "what ends a sequence early, comma-separated: `nan` (a NaN among its logits), `loop` (a repetition loop), "
        "`alarm` (the profile's); a request's `corevital_stop_on` overrides it; logged where the engine cannot",
    )
    log_format: Literal["text", "json"] = _setting(
        "text", "one of text, json", "`json`: structured lines with request and trace id"
    )
    capture_content: bool = _setting(False, "0 or 1", "`1`: prompt and completion text may leave the process")
    db_content: bool = _setting(
        False,
        "0 or 1",
        "`1`: the store keeps the output's tokens as text, and the likeliest ones at each place, of requests at high "
        "risk or with a flag, for `corevital ui`; nothing else shows them",
    )

    prompt_hash_key: str | None = _setting(
        None,
        "a secret of any text",
        "a secret: spans then carry `corevital.prompt.hash`, by which repeated prompts are found",
    )
    otel_profile: str = _setting(
        AUTO,
        f"auto, none, or some of {', '.join(BACKENDS)}",
        "backends that get additional span attributes: `auto` (by the endpoint), `none`, or some of `langfuse`, "
        "`openlit`, `phoenix`, comma-separated",
    )
    http_spans: bool = _setting(True, "0 or 1", "`0`: no span for the HTTP request around a request's span")

    process: Literal["thread", "process"] = _setting(
        "thread",
        "one of thread, process",
        "where telemetry runs behind an engine's API server: `thread`, a thread in it; or `process`, the hub process, "
        "whose metrics the API server shows on its `/metrics`. It stays a thread, with a line in the log, where "
        "`COREVITAL_HUB` is set, with several API servers, and with the engine's own tracing",
    )
    hub: str | None = _setting(
        None,
        "tcp://HOST:PORT, where HOST is an IPv4 address, an IPv6 address in brackets, or a name",
        "a hub on another host, as `tcp://host:port`; needs `COREVITAL_HUB_KEY`",
    )
    hub_key: str | None = _setting(
        None,
        f"a secret of {_KEY_LENGTH} characters or more, such as the output of {_MAKE_SECRET}",
        "a secret that hub and engines share: it encrypts and authenticates what goes to `COREVITAL_HUB`",
        min_length=_KEY_LENGTH,
    )
    http: str | None = _setting(
        None,
        "HOST:PORT, where HOST is an IPv4 address, an IPv6 address in brackets, or a name; or none",
        "the hub's own HTTP port: `/metrics`, `/health`, `/corevital/v1/requests/{id}`; a hub process has "
        f"`{HTTP_OF_A_HUB}` unless this is set; `none`: no port",
    )
    http_token: str | None = _setting(
        None,
        "a secret of printable ASCII characters without spaces",
        "a secret: the HTTP port then answers only requests with `Authorization: Bearer` and this token, except "
        "`/health`; needed where `COREVITAL_HTTP` is not a loopback address",
        pattern=r"^[!-~]+$",
    )

    @property
    def stores_content(self) -> bool:
        """Whether the text of some outputs is kept in the store."""
        return self.db_content and self.db is not None

    @property
    def resends(self) -> bool:
        """Whether spans that were not delivered are sent from the store."""
        return self.db_resend and self.db is not None

    def http_address(self, default: Address | None = None) -> Address | None:
        """Where to listen for HTTP; None: nowhere.

        Args:
            default: where ``http`` is not set: :data:`HTTP_OF_A_HUB` in a hub process.
        """
        if self.http is None:
            return default
        return None if self.http == NONE else addresses.parse(self.http)

    @field_validator("hub")
    @classmethod
    def _is_tcp(cls, value: str | None) -> str | None:
        return None if value is None else f"tcp://{addresses.parse_tcp(value)}"

    @field_validator("http")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        return value if value in (None, NONE) else str(addresses.parse(value))

    @property
    def stops(self) -> tuple[str, ...]:
        """What ``stop_on`` names."""
        return stops_named(self.stop_on or NO_STOP)

    @field_validator("stop_on")
    @classmethod
    def _names_stops(cls, value: str | None) -> str | None:
        stops_named(value or NO_STOP)
        return value

    @field_validator("otel_profile")
    @classmethod
    def _names_backends(cls, value: str) -> str:
        backends_named(value)
        return value

    @field_validator("db", "profile", "prompt_hash_key", "hub", "hub_key", "http", "http_token", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("db", "profile")
    @classmethod
    def _is_path(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        try:
            expanded = value.expanduser()
            os.fsencode(expanded)
        except (RuntimeError, ValueError):  # no such user, or no path that this system can have
            raise ValueError("no path") from None
        if "\0" in str(expanded):
            raise ValueError("no path")
        with contextlib.suppress(OSError):
            if expanded.exists() and not (expanded.is_file() or expanded.is_dir()):
                raise ValueError("no file")  # a pipe would be waited for
        return expanded

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file."""
        env = _env()
        sources = (init_settings, InitSettingsSource(settings_cls, _from_environment(env)))
        file = settings_file.read(env)
        if "attach" in file:  # engines decide by it before any file is read
            raise SettingsError(f"{_FILE}: attach counts only in the environment: set COREVITAL_ATTACH")
        return (*sources, InitSettingsSource(settings_cls, file))


def backends_named(setting: str) -> tuple[Backend, ...] | None:
    """The backends that ``COREVITAL_OTEL_PROFILE`` names; None stands for ``auto``.

    Raises:
        ValueError: a name that is not one of :data:`BACKENDS`.
    """
    wanted = tuple(name.strip() for name in setting.split(",") if name.strip())
    if wanted == (AUTO,):
        return None
    if wanted == (NONE,):
        return ()
    if not wanted or any(name not in BACKENDS for name in wanted):
        raise ValueError("no such backend")
    return cast("tuple[Backend, ...]", wanted)


def load(env: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process.

    Args:
        env: environment variables, those of the process by default.

    Raises:
        SettingsError: a setting or the file is wrong.
    """
    found, wrong = _read(env)
    if found is None:
        raise SettingsError(wrong[0][1])
    return found


def problems(env: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """What is wrong with the settings: the variable's name and one line each. Empty where :func:`load` succeeds."""
    return _read(env)[1]


def _read(env: Mapping[str, str] | None) -> tuple[Settings | None, list[tuple[str, str]]]:
    token = _environment.set(env)
    try:
        settings = Settings()
        wrong = list(_together(settings))
        return (None, wrong) if wrong else (settings, [])
    except ValidationError as error:
        return None, [_one_line(cast("dict[str, Any]", one)) for one in error.errors(include_url=False)]
    except SettingsError as error:
        return None, [(_FILE, str(error))]
    finally:
        _environment.reset(token)


def _together(settings: Settings) -> Iterator[tuple[str, str]]:
    """What one setting needs of another."""
    if settings.hub is not None and settings.hub_key is None:
        yield (
            "COREVITAL_HUB",
            f"COREVITAL_HUB={settings.hub} needs COREVITAL_HUB_KEY, the same on all hosts: set it to a secret such as "
            f"the output of {_MAKE_SECRET}",
        )
    if settings.db_resend and settings.db is None:
        yield (
            "COREVITAL_DB_RESEND",
            "COREVITAL_DB_RESEND=1 needs a store, in which spans wait: set COREVITAL_DB to a file's path, or "
            "COREVITAL_DB_RESEND to 0",
        )
    address = settings.http_address()
    if address is not None and not address.is_loopback and settings.http_token is None:
        yield (
            "COREVITAL_HTTP",
            f"COREVITAL_HTTP={address} can be reached from other hosts and needs COREVITAL_HTTP_TOKEN: set it to a "
            f"secret such as the output of {_MAKE_SECRET}, or listen at 127.0.0.1:{address.port}",
        )


def _env() -> Mapping[str, str]:
    env = _environment.get()
    return os.environ if env is None else env


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    """Variables by their settings' names. Upper or lower case; an exact name takes precedence."""
    folded = {name.upper(): value for name, value in env.items()} | dict(env)
    found = {}
    for field in Settings.model_fields:
        value = folded.get(f"{_PREFIX}{field.upper()}")
        if value is not None and (value.strip() or field == "db"):
            found[field] = value.strip()
    return found


def _one_line(error: Mapping[str, Any]) -> tuple[str, str]:
    name = str(error["loc"][0])
    field = Settings.model_fields.get(name)
    if field is None:
        known = ", ".join(Settings.model_fields)
        return _FILE, f"{_FILE}: unknown setting {printable(repr(name), _SHOWN)}: use one of {known}"
    variable = f"{_PREFIX}{name.upper()}"
    value = "" if _SECRETS & set(name.split("_")) else f"={printable(repr(str(error['input'])), _SHOWN)}"
    return variable, f"{variable}{value} is not allowed: use {_allowed(field.json_schema_extra)}"


def _allowed(extra: object) -> str:
    return str(cast("dict[str, Any]", extra)["allowed"])


def unknown() -> list[str]:
    """One line for each unknown ``COREVITAL_*`` variable of the environment, with the setting that was meant."""
    known = [name.removeprefix(_PREFIX) for name in (_FILE, *(field.upper() for field in Settings.model_fields))]
    lines = []
    for name in sorted(os.environ):
        bare = name.upper().removeprefix(_PREFIX)
        if bare != name.upper() and bare not in (*known, *_INTERNAL):
            close = difflib.get_close_matches(bare, known, 1)
            meant = f"did you mean {_PREFIX}{close[0]}?" if close else "docs/reference/settings.md lists the settings"
            lines.append(f"{printable(name, _SHOWN)}: unknown setting, ignored: {meant}")
    return lines


def describe() -> list[tuple[str, str, str, str]]:
    """The settings as rows of (name, default, what is allowed, meaning), for the documentation."""

    def text(default: Any) -> str:
        if default is None:
            return "none"
        return str(int(default)) if isinstance(default, bool) else str(default)

    return [
        (f"{_PREFIX}{name.upper()}", text(field.default), _allowed(field.json_schema_extra), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
