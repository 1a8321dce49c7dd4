"""Settings: ``COREVITAL_*`` variables, over a TOML file named by ``COREVITAL_CONFIG``, over defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal, cast

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from corevital_otel import profiles
from corevital_otel.errors import SettingsError

__all__ = ["Settings", "SettingsError", "describe", "load"]

_PREFIX: Final = "COREVITAL_"
_FILE: Final = "COREVITAL_CONFIG"


def _setting(default: Any, allowed: str, meaning: str, **constraints: Any) -> Any:
    return Field(default, description=meaning, json_schema_extra={"allowed": allowed}, **constraints)


class Settings(BaseSettings):
    """All settings. In a TOML file the names are lower case and without the prefix: ``capture = "full"``."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False)

    enabled: bool = _setting(
        True, "0 or 1", "`0`: the plugin is loaded but does nothing: tokens, latency and telemetry as without it"
    )
    capture: Literal["summary", "full", "on_risk"] = _setting(
        "on_risk",
        "one of summary, full, on_risk",
        "`summary`, `full` (per-token series for every request) or `on_risk` (only where risk or a flag asks)",
    )
    sample_rate: float = _setting(
        1.0,
        "a number from 0 to 1",
        "share of requests kept, decided per request at admission; a caller's sampled flag goes before it, and what is "
        "at high risk or faulty is kept whatever it is",
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
        "a run of so many such steps is `sustained_high_entropy`; a step that is none takes two off",
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
        Path("runs/corevital.db"), "a file's path, or empty for none", "the embedded SQLite store; empty: none"
    )
    db_retention_days: float = _setting(
        30, "a number above 0, up to 36500", "the store prunes itself to this age, oldest first", gt=0, le=36500
    )
    db_max_mb: float = _setting(1024, "a number from 1 up", "the store prunes itself to this size, oldest first", ge=1)
    profile: Path | None = _setting(
        None,
        "a file's path, or empty for none",
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
    log_format: Literal["text", "json"] = _setting(
        "text", "one of text, json", "`json`: structured lines with request and trace id"
    )
    capture_content: bool = _setting(False, "0 or 1", "`1`: prompt and completion text may leave the process")

    prompt_hash_key: str | None = _setting(
        None,
        "a secret of any text, or empty for none",
        "a secret: spans then carry `corevital.prompt.hash`, by which repeated prompts are found",
    )
    otel_profile: str = _setting(
        profiles.AUTO,
        f"auto, none, or some of {', '.join(profiles.PROFILES)}",
        "backends that get attributes of their own besides: `auto` (by the endpoint), `none`, or some of `langfuse`, "
        "`openlit`, `phoenix`, comma-separated",
    )
    http_spans: bool = _setting(True, "0 or 1", "`0`: no span for the HTTP request around a request's span")

    @field_validator("otel_profile")
    @classmethod
    def _is_profile(cls, value: str) -> str:
        profiles.parse(value)
        return value

    @field_validator("db", "profile", "prompt_hash_key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

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
        file = os.environ.get(_FILE)
        sources = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls, file)) if file else sources


def load() -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: a setting or the file is wrong.
    """
    file = os.environ.get(_FILE)
    if file and not (Path(file).is_file() and os.access(file, os.R_OK)):
        raise SettingsError(f"{_FILE}={file!r} cannot be read: name a readable TOML file, or unset it")
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    except ValueError as error:  # TOML's own errors
        raise SettingsError(f"{_FILE}={file!r} is no valid TOML: {error}") from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    field = Settings.model_fields.get(name)
    if field is None:
        known = ", ".join(Settings.model_fields)
        return f"{_FILE}: {name!r} is no setting: use one of {known}"
    return f"{_PREFIX}{name.upper()}={str(first['input'])!r} is not allowed: use {_allowed(field.json_schema_extra)}"


def _allowed(extra: object) -> str:
    return str(cast("dict[str, Any]", extra)["allowed"])


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
