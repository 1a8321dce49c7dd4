"""The configuration that rules and dashboards are made from: ``dashboards/config.toml``."""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from corevital_otel.conventions import SERVER_TIME_TO_FIRST_TOKEN_BUCKETS

FILE: Final = Path(__file__).parents[1] / "config.toml"
Share = Annotated[float, Field(gt=0, lt=1)]
Label = Annotated[str, Field(pattern=r"^[a-zA-Z_]\w*$")]
Duration = Annotated[str, Field(pattern=r"^\d+[mhd]$")]
Url = Annotated[str, Field(pattern=r"^https?://[^/\s]+(/[^\s]*[^/\s])?$")]
Count = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Targets(_Table):
    """Jobs, as regular expressions."""

    server: str
    not_server: str
    frontend: str
    collector: str
    tempo: str
    prometheus: str
    alertmanager: str
    grafana: str

    @field_validator("*")
    @classmethod
    def _compiles(cls, value: str) -> str:
        re.compile(value)
        return value

    @property
    def selector(self) -> str:
        """Matchers of the servers' jobs."""
        return f'job=~"{self.server}", job!~"{self.not_server}"'

    @property
    def stack(self) -> str:
        """One expression for all jobs of the stack."""
        return "|".join((self.collector, self.tempo, self.prometheus, self.alertmanager, self.grafana))


class Labels(_Table):
    """Labels that say where, and the prefix of the tag that says for whom."""

    cluster: Label
    tenant: Annotated[str, Field(pattern=r"^[\w.=:-]*$")]
    server: tuple[Label, ...]


class Urls(_Table):
    """Addresses that a person opens."""

    grafana: Url
    hub: Url


class Objectives(_Table):
    """Service level objectives, as budgets."""

    fault_budget: Share
    first_token_budget: Share
    first_token_s: float
    least_requests: Count
    least_faults: Count

    @field_validator("first_token_s")
    @classmethod
    def _is_a_bucket(cls, value: float) -> float:
        if value not in SERVER_TIME_TO_FIRST_TOKEN_BUCKETS:
            raise ValueError(f"must be a bucket's bound, one of {SERVER_TIME_TO_FIRST_TOKEN_BUCKETS}")
        return value


class Times(_Table):
    """What may take its time."""

    deploy: Duration
    start: Duration
    rollback: Duration


class Thresholds(_Table):
    """Where alerts begin."""

    loop_share: Share
    stopped_share: Share
    high_risk_share: Share
    truncated_share: Share
    warning_share: Share
    abort_share: Share
    failed_share: Share
    looping_now: Share
    times_own_week: float
    lost_share: Share
    lost_least: Count
    lag_s: float
    cores: float
    crashes_1h: Count
    restarts_6h: Count


class Outlier(_Table):
    """When a server differs from its peers."""

    times_peers: float
    least: Count
    loop_share: Share
    high_risk_share: Share
    abort_share: Share
    entropy_share: Share
    entropy_bits: float


class Config(_Table):
    """The whole file, without the tables under ``kubernetes``."""

    targets: Targets
    labels: Labels
    urls: Urls
    objectives: Objectives
    times: Times
    thresholds: Thresholds
    outlier: Outlier


def load(file: Path = FILE) -> Config:
    """Read the file.

    Raises:
        pydantic.ValidationError: a value is missing, unknown or wrong.
    """
    return Config.model_validate({name: table for name, table in _tables(file).items() if name != "kubernetes"})


def load_kubernetes(file: Path = FILE) -> Config:
    """The same with what differs in Kubernetes."""
    tables = _tables(file)
    for name, changed in tables.pop("kubernetes", {}).items():
        tables[name] = tables.get(name, {}) | changed
    return Config.model_validate(tables)


def percent(share: float) -> str:
    """``0.01`` is ``1 %``."""
    return f"{round(100 * share, 6):g} %"


def _tables(file: Path) -> dict[str, dict[str, Any]]:
    return tomllib.loads(file.read_text())


FOR: Final = "DASHBOARDS_FOR"
CONFIG: Final = load_kubernetes() if os.environ.get(FOR) == "kubernetes" else load()
"""What the dashboards are made from: their modules hold it as constants, so each configuration has its own process."""
