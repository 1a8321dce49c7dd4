"""A report as span attributes, by the conventions. The store keeps the same attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from operator import attrgetter
from typing import Any, Final

from corevital.text import cut
from corevital_otel import __version__
from corevital_otel import conventions as names
from corevital_otel.report import RequestReport, Segments

_FEATURE_ATTRIBUTES: Final = tuple(names.FEATURES.values())
_ASSESSED_ATTRIBUTES: Final = tuple(names.ASSESSED.values())
_features: Final = attrgetter(*names.FEATURES)

Value = bool | int | float | str | Sequence[str]


def span_attributes(report: RequestReport) -> dict[str, Value]:
    """All attributes of a report's span. What is not known, or OTLP cannot carry, is absent, never null."""
    admitted, outcome, features = report.admitted, report.outcome, report.features
    health, risk, core = report.health, report.risk, report.outcome.core
    cached_tokens = outcome.cached_tokens if core.cached_tokens is None else core.cached_tokens
    model = cut(admitted.model)
    attributes: dict[str, Value | None] = {
        names.OPERATION_NAME: admitted.operation,
        names.PROVIDER_NAME: admitted.engine,
        names.REQUEST_MODEL: model,
        names.RESPONSE_MODEL: model,
        names.RESPONSE_ID: cut(admitted.request_id) or None,
        names.RESPONSE_FINISH_REASONS: (outcome.reason,),
        names.USAGE_INPUT_TOKENS: admitted.prompt_tokens,
        names.USAGE_OUTPUT_TOKENS: len(outcome.token_ids),
        names.USAGE_CACHE_READ_INPUT_TOKENS: cached_tokens,
        names.USAGE_REASONING_OUTPUT_TOKENS: outcome.reasoning_tokens,
        names.REQUEST_TEMPERATURE: admitted.temperature,
        names.REQUEST_TOP_P: admitted.top_p,
        names.REQUEST_TOP_K: admitted.top_k,
        names.REQUEST_MAX_TOKENS: admitted.max_tokens,
        names.REQUEST_SEED: admitted.seed,
        names.REQUEST_CHOICE_COUNT: admitted.choices if admitted.choices != 1 else None,
        names.REQUEST_STREAM: admitted.stream,
        names.REQUEST_FREQUENCY_PENALTY: admitted.frequency_penalty or None,
        names.REQUEST_PRESENCE_PENALTY: admitted.presence_penalty or None,
        names.OUTPUT_TYPE: admitted.output_type,
        names.ERROR_TYPE: "engine_error" if outcome.reason == "error" else None,
        names.RESPONSE_TIME_TO_FIRST_CHUNK: outcome.first_chunk_s,
        names.RISK_SCORE: risk.score,
        names.RISK_LEVEL: risk.level,
        names.RISK_BASIS: risk.basis,
        names.RISK_FACTORS: risk.factors,
        names.HEALTH + "nan_detected": health.nan_detected,
        names.HEALTH + "inf_detected": health.inf_detected,
        names.HEALTH + "repetition_loop_detected": health.repetition_loop_detected,
        names.HEALTH + "truncated": health.truncated,
        names.HEALTH + "sustained_high_entropy": health.sustained_high_entropy,
        names.HEALTH + "distribution_collapsed": health.distribution_collapsed,
        names.HEALTH + "traffic_shifted": health.traffic_shifted,
        names.HEALTH + "template_detected": health.template_detected,
        names.ALARM_RAISED: health.alarm_raised if health.alarm_signal else None,
        names.ALARM_ONSET: health.alarm_onset,
        names.ALARM_SIGNAL: health.alarm_signal,
        names.LOOP_ONSET: health.loop_onset,
        names.LOOP_PERIOD: health.loop_period,
        names.TEMPLATE_ONSET: health.template_onset,
        names.TEMPLATE_PERIOD: health.template_period,
        **dict(zip(_FEATURE_ATTRIBUTES, _features(features), strict=True)),
        names.SURPRISAL_ESTIMATED: features.surprisal_estimated or None,
        names.TOKENS_FORCED: features.forced or None,
        names.INCOMPLETE: report.incomplete or None,
        names.LOGITS_STAGE: report.stage,
        names.ENGINE: admitted.engine,
        names.ENGINE_VERSION: admitted.engine_version or None,
        names.RUNNER: report.runner,
        names.VERSION: __version__,
        names.CAPTURE: report.capture,
        names.SAMPLED: None if report.admission.drawn else False,
        names.SEQUENCE: admitted.sequence,
        names.ROLE: admitted.role,
        names.PREFILL_REQUEST_ID: admitted.prefill_id,
        names.TRANSFER_ID: admitted.transfer_id,
        names.BATCH: admitted.batch,
        names.PROMPT_HASH: admitted.prompt_hash,
        names.QUEUE_S: core.queue_s,
        names.PREFILL_S: core.prefill_s,
        names.DECODE_S: core.decode_s,
        names.PREEMPTIONS: core.preemptions,
        names.DATA_PARALLEL_RANK: core.data_parallel_rank,
        names.STOP_REASON: core.stop_reason,
        names.CACHED_TOKENS_SOURCE: core.cached_source,
        names.DRAFT_ACCEPTED_TOKENS: core.accepted_draft_tokens,
        names.TAGS: tuple(cut(tag) for tag in admitted.tags) or None,
    }
    if report.segments is not None:
        attributes |= _of_segments(report.segments)
    return {
        name: value
        for name, value in attributes.items()
        if value is not None
        and (type(value) is not float or isfinite(value))
        and (type(value) is not int or -(2**63) <= value < 2**63)
    }


def _of_segments(segments: Segments) -> dict[str, Value | None]:
    found: dict[str, Value | None] = {}
    for kind, prefix in names.SEGMENTS.items():
        part = getattr(segments, kind)
        if part is not None:
            found[prefix + "tokens"] = part.tokens
            found[prefix + "entropy.mean"] = part.entropy_mean
            found[prefix + "surprisal.mean"] = part.surprisal_mean
    if segments.assessed is not None:
        found[names.RISK_SEGMENT] = segments.assessed.segment
        found |= zip(_ASSESSED_ATTRIBUTES, _features(segments.assessed.features), strict=True)
    return found


def content_attributes(report: RequestReport) -> dict[str, Value]:
    """The text of a request, for its span alone, where content may leave the process. The store never has it."""
    admitted, outcome = report.admitted, report.outcome
    found: dict[str, Value] = {}
    if admitted.prompt_text is not None:
        found[names.INPUT_MESSAGES] = _message("user", admitted.prompt_text, admitted.prompt_characters)
    if outcome.text is not None:
        found[names.OUTPUT_MESSAGES] = _message("assistant", outcome.text, outcome.text_characters)
    if admitted.stop_sequences:
        found[names.REQUEST_STOP_SEQUENCES] = admitted.stop_sequences
    return found


def _message(role: str, text: str, characters: int | None = None) -> str:
    left_out = (characters or len(text)) - names.CONTENT_CHARACTERS
    text = text[: names.CONTENT_CHARACTERS].encode(errors="replace").decode()  # UTF-8 cannot hold half a surrogate pair
    if left_out > 0:
        text = f"{text}… [{left_out} characters left out]"
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}], ensure_ascii=False)


def evaluation_of(found: Mapping[str, Any]) -> dict[str, Value]:
    """Attributes of the event that gives the risk as an evaluation, out of those of its span. They hold no content."""
    because = "; ".join(found.get(names.RISK_FACTORS, ())) or "no signal stands out"
    attributes: dict[str, Value | None] = {
        names.EVALUATION_NAME: names.RISK_SCORE,
        names.EVALUATION_SCORE_VALUE: found.get(names.RISK_SCORE),
        names.EVALUATION_SCORE_LABEL: found[names.RISK_LEVEL],
        names.EVALUATION_EXPLANATION: f"0 is good, 1 is bad; basis {found[names.RISK_BASIS]}: {because}",
        names.RESPONSE_ID: found.get(names.RESPONSE_ID),
    }
    return {name: value for name, value in attributes.items() if value is not None}
