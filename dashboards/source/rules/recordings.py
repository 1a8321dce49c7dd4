"""Recordings of a model: sums of increases, recorded separately and divided later.

A mean of ratios would weigh a quiet hour like a busy one. The week's baselines are sums over these rules, thousands of
samples instead of millions of the raw series.
"""

from typing import Final

from dashboards.source.config import Config
from dashboards.source.rules.rule import Group, Record, Scope, increase, lines, of

_EACH_TOKEN: Final = "gen_ai_server_time_per_output_token_seconds"  # noqa: S105 - a name, not a secret
WARNINGS: Final = "sustained_high_entropy|distribution_collapsed|alarm_raised"
_WEEK: Final = "[1w] offset 1h"


def groups(config: Config) -> list[Group]:
    """A model now, and its last week without the hour that is compared with it."""
    scope = Scope(config)
    by = scope.model

    def counted(name: str, window: str, metric: str, matchers: str = "") -> Record:
        return Record(f"model:{name}:increase{window}", increase(metric, window, by, matchers))

    def share(name: str, window: str) -> Record:
        whole = f"model:corevital_requests:increase{window}"
        return Record(f"model:{name}:ratio_increase{window}", of(f"model:{name}:increase{window}", whole))

    def share_of_week(name: str) -> Record:
        return Record(
            f"model:{name}:ratio_1w",
            _weekly(f"model:{name}:increase1h", "model:corevital_requests:increase1h"),
        )

    requests, flags = "corevital_requests_total", "corevital_health_flags_total"
    warnings = "corevital_health_warnings_total"
    now: list[Record] = [
        *(counted("corevital_requests", window, requests) for window in ("5m", "10m", "30m", "1h")),
        counted("corevital_loop_requests", "30m", flags, 'flag="repetition_loop_detected"'),
        share("corevital_loop_requests", "30m"),
        Record(
            "model:corevital_sequences_looping:ratio",
            lines(
                f"sum by ({by}) (corevital_sequences_looping)", f"/ (sum by ({by}) (corevital_sequences_running) > 0)"
            ),
        ),
        counted("corevital_high_risk_requests", "1h", requests, 'risk_level="high"'),
        share("corevital_high_risk_requests", "1h"),
        counted("corevital_truncated_requests", "1h", flags, 'flag="truncated"'),
        share("corevital_truncated_requests", "1h"),
        *(counted("corevital_aborted_requests", window, requests, 'finish_reason="abort"') for window in ("10m", "1h")),
        share("corevital_aborted_requests", "10m"),
        Record(
            "model:corevital_health_warnings:increase1h",
            increase(warnings, "1h", f"{by}, warning", f'warning=~"{WARNINGS}"'),
        ),
        Record(
            "model:corevital_health_warnings:ratio_increase1h",
            lines(
                "model:corevital_health_warnings:increase1h",
                f"/ on ({by}) group_left () (model:corevital_requests:increase1h > 0)",
            ),
        ),
    ]
    for histogram in ("corevital_entropy_bits", _EACH_TOKEN):
        now += (
            counted(f"{histogram}_sum", "1h", f"{histogram}_sum"),
            counted(f"{histogram}_count", "1h", f"{histogram}_count"),
            Record(
                f"model:{histogram}:mean1h",
                of(f"model:{histogram}_sum:increase1h", f"model:{histogram}_count:increase1h"),
            ),
        )
    # An hour's squared mean times its requests: the deviation of the hours then weighs each by its requests.
    now.append(
        Record(
            "model:corevital_entropy_bits:squares1h",
            "model:corevital_entropy_bits:mean1h * model:corevital_entropy_bits_sum:increase1h",
        )
    )
    week: list[Record] = [
        share_of_week("corevital_high_risk_requests"),
        share_of_week("corevital_truncated_requests"),
        share_of_week("corevital_aborted_requests"),
        Record(
            "model:corevital_health_warnings:ratio_1w",
            lines(
                f"sum_over_time(model:corevital_health_warnings:increase1h{_WEEK})",
                f"/ on ({by}) group_left () (sum_over_time(model:corevital_requests:increase1h{_WEEK}) > 0)",
            ),
        ),
        *(
            Record(
                f"model:{histogram}:mean_1w",
                _weekly(f"model:{histogram}_sum:increase1h", f"model:{histogram}_count:increase1h"),
            )
            for histogram in ("corevital_entropy_bits", _EACH_TOKEN)
        ),
        # How far an hour's mean is from that in an ordinary week (standard deviation).
        Record(
            "model:corevital_entropy_bits:stddev_1w",
            lines(
                "sqrt(clamp_min(",
                f"sum_over_time(model:corevital_entropy_bits:squares1h{_WEEK})",
                f"  / (sum_over_time(model:corevital_entropy_bits_count:increase1h{_WEEK}) > 0)",
                "- model:corevital_entropy_bits:mean_1w ^ 2, 0))",
            ),
        ),
    ]
    return [Group("corevital-requests", now), Group("corevital-own-week", week, interval="2m")]


def _weekly(part: str, whole: str) -> str:
    return lines(f"sum_over_time({part}{_WEEK})", f"/ (sum_over_time({whole}{_WEEK}) > 0)")
