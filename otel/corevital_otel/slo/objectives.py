"""Objectives, and the TOML file that sets them. The defaults are those of ``dashboards/prometheus/slo.rules.yml``."""

from __future__ import annotations

import math
import tomllib
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from corevital.text import printable
from corevital_otel import conventions as names
from corevital_otel.store.reader import StoredReport

_MOST_BYTES: Final = 1 << 20
_SHOWN: Final = 80

_Target = Annotated[float, Field(gt=0, lt=1)]
_FLAGS: Final = (*names.FLAGS, *names.CONDITIONS)


def _known(flag: str) -> str:
    if flag not in _FLAGS:
        raise ValueError(f"unknown flag: use some of {', '.join(_FLAGS)}")
    return flag


_Flag = Annotated[str, AfterValidator(_known)]


class ObjectiveError(ValueError):
    """The file of objectives is wrong. Its text is one line: file, place, cause and fix."""


class _Objective(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    target: _Target
    """Share of the requests that are good."""
    least_requests: Annotated[int, Field(ge=1)] | None = None
    """Requests needed to say that the objective is met. None: 100, or as many as have a budget of one bad request."""

    @property
    def least(self) -> int:
        """Requests needed to say that it is met."""
        return self.least_requests or max(100, math.ceil(round(1 / (1 - self.target), 6)))

    @abstractmethod
    def is_bad(self, report: StoredReport) -> bool | None:
        """Whether a request uses up budget; None: it does not count."""


class Faults(_Objective):
    """Requests without these flags and finish reasons."""

    target: _Target = 0.99
    flags: list[_Flag] = ["nan_detected", "inf_detected", "repetition_loop_detected"]
    finish_reasons: list[str] = ["error"]

    def is_bad(self, report: StoredReport) -> bool | None:
        """See :class:`_Objective`."""
        return report.finish_reason in self.finish_reasons or not set(self.flags).isdisjoint(report.flags)


class FirstToken(_Objective):
    """Answers whose first token comes within so many seconds."""

    target: _Target = 0.95
    within_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.5

    def is_bad(self, report: StoredReport) -> bool | None:
        """See :class:`_Objective`."""
        seconds = report.summary.get(names.RESPONSE_TIME_TO_FIRST_CHUNK)
        return None if seconds is None else bool(seconds > self.within_s)


class Risk(_Objective):
    """Requests whose risk level is not ``high``, among those that have a level."""

    target: _Target = 0.9

    def is_bad(self, report: StoredReport) -> bool | None:
        """See :class:`_Objective`."""
        return None if report.risk_level == "unknown" else report.risk_level == "high"


class Objectives(BaseModel):
    """The objectives of a file; those that it does not name are None."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    faults: Faults | None = None
    first_token: FirstToken | None = None
    risk: Risk | None = None

    def all(self) -> dict[str, _Objective]:
        """Those that are set, by name."""
        return {name: found for name in type(self).model_fields if (found := getattr(self, name)) is not None}


DEFAULT: Final = Objectives(faults=Faults(), first_token=FirstToken())


def read(path: Path) -> Objectives:
    """The objectives of a TOML file: a table for each.

    Raises:
        ObjectiveError: it cannot be read, names no objective or an unknown one, or has a wrong key or value.
    """
    shown = printable(path, _SHOWN)
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError(2, "there is no such file")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ObjectiveError(f"{shown} cannot be read ({cause}): name a TOML file of objectives") from None
    if len(data) > _MOST_BYTES:
        raise ObjectiveError(f"{shown} is larger than 1 MiB: name a TOML file of objectives")
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ObjectiveError(
            f"{shown} is not TOML ({printable(error, _SHOWN)}): write [faults], then target = 0.99"
        ) from None
    try:
        found = Objectives.model_validate(table)
    except ValidationError as error:
        raise ObjectiveError(f"{shown}: {_why(error)}") from None
    if not found.all():
        raise ObjectiveError(f"{shown} names no objective: add one of {_objectives()}")
    return found


def _objectives() -> str:
    return ", ".join(f"[{name}]" for name in Objectives.model_fields)


def _why(error: ValidationError) -> str:
    """The first mistake: where, and what is allowed."""
    first: Any = error.errors(include_url=False)[0]
    name, *place = (printable(part, 40) for part in first["loc"])
    where = " ".join([f"[{name}]", *place])
    if first["type"] == "extra_forbidden" and place:
        return f"unknown key {where}: use {', '.join(_KINDS[name].model_fields)}"
    if first["type"] == "extra_forbidden":
        return f"unknown objective {where}: use {_objectives()}"
    if not place:
        return f"{where} {printable(repr(first['input']), 40)}: write a table, such as [faults] and then target = 0.99"
    why = first["msg"].removeprefix("Value error, ")
    return f"{where} {printable(repr(first['input']), 40)}: {why[0].lower()}{printable(why[1:], 200)}"


_KINDS: Final[dict[str, type[_Objective]]] = {"faults": Faults, "first_token": FirstToken, "risk": Risk}
