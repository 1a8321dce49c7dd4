"""Every TraceQL query of the dashboards, for Tempo."""

from typing import Final

from dashboards.source.config import CONFIG

_OF_MODEL: Final = 'span.gen_ai.request.model =~ "$model"'
_COLUMNS: Final = (
    "| select(span.corevital.risk_score, span.corevital.risk.level, span.gen_ai.request.model, "
    "span.gen_ai.response.id, span.gen_ai.usage.output_tokens, span.corevital.entropy.mean)"
)
_FAULTY: Final = (
    "span.corevital.health.nan_detected = true || span.corevital.health.inf_detected = true "
    "|| span.corevital.health.repetition_loop_detected = true"
)


def at_risk(models: str) -> str:
    """Spans at high risk or with a fault flag.

    Args:
        models: a regular expression.
    """
    return (
        f'{{ (span.corevital.risk.level = "high" || {_FAULTY}) && span.gen_ai.request.model =~ "{models}" }} {_COLUMNS}'
    )


HIGH_RISK: Final = f"{{ span.corevital.risk_score >= $risk && {_OF_MODEL} }} {_COLUMNS}"
NAN: Final = (
    f"{{ (span.corevital.health.nan_detected = true || span.corevital.health.inf_detected = true) && {_OF_MODEL} }} "
    f"{_COLUMNS}"
)
LOOPS: Final = f"{{ span.corevital.health.repetition_loop_detected = true && {_OF_MODEL} }} {_COLUMNS}"
WARNINGS: Final = (
    "{ (span.corevital.health.sustained_high_entropy = true || span.corevital.health.distribution_collapsed = true "
    f"|| span.corevital.alarm.raised = true) && {_OF_MODEL} }} {_COLUMNS}"
)
TRUNCATED: Final = f"{{ span.corevital.health.truncated = true && {_OF_MODEL} }} {_COLUMNS}"
LATE: Final = (
    f"{{ span.gen_ai.response.time_to_first_chunk > {CONFIG.objectives.first_token_s:g} && {_OF_MODEL} }} {_COLUMNS}"
)
TENANT: Final = (
    f'{{ span.corevital.tags = "{CONFIG.labels.tenant}$tenant" && {_OF_MODEL} '
    f"&& (span.corevital.risk_score >= $risk || {_FAULTY}) }} {_COLUMNS}"
)
"""No metric has a tenant: its values are unbounded. A span has the tags of its request."""
