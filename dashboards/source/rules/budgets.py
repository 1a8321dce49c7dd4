"""Service level objectives, and their error budgets' burn rates over several windows (Google's SRE workbook).

Each alert needs a long window, to be significant; a short one, to resolve soon; and a number of requests in the long
one, so that a single bad answer in a quiet night does not fire.
"""

from collections.abc import Iterator
from typing import Final

from dashboards.source.config import Config, percent
from dashboards.source.rules.rule import Alert, Group, Record, Scope, Severity, increase, lines

from corevital_otel.conventions import FAULT_FLAGS, FLAGS

_WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_REQUESTS: Final = "corevital_requests_total"
_FIRST_TOKEN: Final = "gen_ai_server_time_to_first_token_seconds"  # noqa: S105 - a name, not a secret
_COUNTED: Final = [flag for flag in FAULT_FLAGS if flag in FLAGS]
_NOT_COUNTED: Final = [flag for flag in FAULT_FLAGS if flag not in FLAGS]
"""Fault flags that are right only most of the time: an alarm is wrong for one good answer in twenty."""
_BURNS: Final[tuple[tuple[str, str, float, str, Severity, str], ...]] = (
    ("1h", "5m", 14.4, "2m", "critical", "two"),
    ("6h", "30m", 6, "15m", "critical", "five"),
    ("1d", "2h", 3, "1h", "warning", "ten"),
    ("3d", "6h", 1, "3h", "warning", "thirty"),
)
"""Long and short window, burn rate, how long it must hold, severity, days until the budget of 30 is used up."""


def groups(config: Config) -> list[Group]:
    """Recordings and alerts of the objectives."""
    scope = Scope(config)
    # corevital-requests has the requests of the others.
    requests = [
        Record(f"model:corevital_requests:increase{window}", increase(_REQUESTS, window, scope.model))
        for window in ("2h", "6h", "1d", "3d")
    ]
    faults = [record for window in _WINDOWS for record in _faults(window, scope)]
    late = [_late(window, scope, config.objectives.first_token_s) for window in _WINDOWS]
    return [
        Group("corevital-slo", [*requests, *faults, *late], interval="1m"),
        Group("corevital-burn-rates", [*_fault_alerts(config), *_latency_alerts(config)]),
    ]


def _faults(window: str, scope: Scope) -> Iterator[Record]:
    """Each faulty sequence once.

    A server of an earlier version counts flags only: there, the most frequent one is a lower bound.
    """
    both = scope.both
    errors = increase(_REQUESTS, window, scope.model, 'finish_reason="error"')
    yield Record(
        f"model:corevital_faults:increase{window}",
        lines(
            f"sum by ({scope.model}) (",
            increase("corevital_requests_faulty_total", window, both, f'flag!~"{"|".join(_NOT_COUNTED)}"'),
            f'or max by ({both}) (increase(corevital_health_flags_total{{flag=~"{"|".join(_COUNTED)}"}}[{window}]))',
            f"or 0 * {increase(_REQUESTS, window, both)})",
            f"+ ({errors}",
            f"or 0 * model:corevital_requests:increase{window})",
        ),
    )
    requests = f"model:corevital_requests:increase{window}"
    yield Record(
        f"model:corevital_faults:ratio_increase{window}",
        f"clamp_max(model:corevital_faults:increase{window} / ({requests} > 0), 1)",
    )


def _late(window: str, scope: Scope, bound_s: float) -> Record:
    in_time = increase(f"{_FIRST_TOKEN}_bucket", window, scope.model, f'le="{bound_s}"')
    return Record(
        f"model:corevital_slow_first_tokens:ratio_increase{window}",
        lines(
            f"1 - {in_time}",
            f"/ ({increase(f'{_FIRST_TOKEN}_count', window, scope.model)} > 0)",
        ),
    )


def _fault_alerts(config: Config) -> Iterator[Alert]:
    goals = config.objectives
    for long, short, rate, waits, severity, days in _BURNS:
        yield Alert(
            name="CorevitalFaultBudgetBurn",
            expr=lines(
                f"model:corevital_faults:ratio_increase{long} > {rate:g} * {goals.fault_budget:g}",
                f"and model:corevital_faults:ratio_increase{short} > {rate:g} * {goals.fault_budget:g}",
                f"and model:corevital_faults:increase{long} >= {goals.least_faults}",
                f"and model:corevital_requests:increase{long} >= {goals.least_requests}",
            ),
            waits=waits,
            severity=severity,
            labels={"window": long},
            summary="{{ $labels.gen_ai_request_model }} burns its error budget for healthy answers",
            description=f"{{{{ $value | humanizePercentage }}}} of its sequences in {long} had NaN, Inf, a loop "
            f"or an error "
            f"of the engine; the objective allows {percent(goals.fault_budget)}. The budget of 30 days is used "
            f"up within "
            f"{days} days.",
        )


def _latency_alerts(config: Config) -> Iterator[Alert]:
    goals = config.objectives
    for long, short, rate, waits, severity, days in _BURNS:
        late = f"> {rate:g} * {goals.first_token_budget:g}"
        yield Alert(
            name="CorevitalLatencyBudgetBurn",
            expr=lines(
                f"model:corevital_slow_first_tokens:ratio_increase{long} {late}",
                f"and model:corevital_slow_first_tokens:ratio_increase{short} {late}",
                f"and model:corevital_requests:increase{long} >= {goals.least_requests}",
            ),
            waits=waits,
            severity=severity,
            labels={"window": long},
            summary="{{ $labels.gen_ai_request_model }} burns its error budget for the first token",
            description=f"{{{{ $value | humanizePercentage }}}} of its answers in {long} began after more than "
            f"{goals.first_token_s:g} s; the objective allows {percent(goals.first_token_budget)}. The budget "
            f"of 30 days is "
            f"used up within {days} days.",
        )
