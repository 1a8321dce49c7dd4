"""Every name, unit and bucket that is emitted. No other module spells one.

The ``gen_ai.*`` names are those of the OpenTelemetry semantic conventions for generative AI (all in development), in
https://github.com/open-telemetry/semantic-conventions-genai since 2026: span attributes from
``docs/gen-ai/gen-ai-spans.md`` and ``docs/registry/attributes/gen-ai.md``, metrics from
``docs/gen-ai/gen-ai-metrics.md``. The Python package's constants for them are deprecated copies.
The ``corevital.*`` names are ours and public: they change only with a major version.
"""

from typing import Final

# Span attributes: gen-ai-spans.md

OPERATION_NAME: Final = "gen_ai.operation.name"
"""``chat`` or ``text_completion``."""
PROVIDER_NAME: Final = "gen_ai.provider.name"
"""The serving engine's name."""
REQUEST_MODEL: Final = "gen_ai.request.model"
"""The name the model is served under."""
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
"""Double."""
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
"""Double."""
REQUEST_TOP_K: Final = "gen_ai.request.top_k"
"""Int (a double in the conventions before 2026)."""
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
"""Most tokens the request lets the model generate."""
REQUEST_SEED: Final = "gen_ai.request.seed"
"""Int."""
REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
"""Sequences asked for (``n``); absent where it is 1."""
REQUEST_STREAM: Final = "gen_ai.request.stream"
"""Bool: the answer was streamed."""
REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"
"""Double; absent if 0."""
REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
"""Double; absent if 0."""
OUTPUT_TYPE: Final = "gen_ai.output.type"
"""``json`` if the request set it, otherwise ``text``."""
ERROR_TYPE: Final = "error.type"
"""``engine_error``, where the engine failed the sequence; from the general conventions, recording-errors.md."""
RESPONSE_MODEL: Final = "gen_ai.response.model"
"""The same as :data:`REQUEST_MODEL`: one engine serves one model."""
RESPONSE_ID: Final = "gen_ai.response.id"
"""The request id the client sees; absent where the engine does not know it."""
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
"""One entry: a span is one sequence."""
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
"""Seconds from the request's arrival."""
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
"""Tokens of the prompt, cached ones included."""
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
"""Tokens returned to the client."""
USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
"""Tokens of the prompt that were read from the engine's cache or came from another server. No engine reports how many
tokens it wrote to its cache, so ``gen_ai.usage.cache_write.input_tokens`` is never set."""
USAGE_REASONING_OUTPUT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
"""Tokens of the output that a reasoning parser took out of the answer; absent where it is not known."""

# Span attributes with content, only with COREVITAL_CAPTURE_CONTENT=1: gen-ai-spans.md

INPUT_MESSAGES: Final = "gen_ai.input.messages"
"""JSON: one message of the role ``user`` whose text is the prompt as the model was given it, chat template and all."""
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
"""JSON: one message of the role ``assistant``. Its finish reason is :data:`RESPONSE_FINISH_REASONS` alone: that of a
message is deprecated."""
REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
"""The request's stop strings: a client's text, and so content."""
CONTENT_CHARACTERS: Final = 16_384
"""Most characters of a text that is sent; a note says how much is left out."""

# Span attributes: ours

RISK_SCORE: Final = "corevital.risk_score"
"""0 to 1; 1 is bad. Absent where there is no score. Also the name of a metric: histogram, ``{score}``; ``basis``."""
RISK_LEVEL: Final = "corevital.risk.level"
"""``low``, ``medium``, ``high`` or ``unknown``."""
RISK_BASIS: Final = "corevital.risk.basis"
"""``prior``, ``baseline`` or ``calibrated``."""
RISK_FACTORS: Final = "corevital.risk.factors"
"""What raised the score, strongest first."""
HEALTH: Final = "corevital.health."
"""Prefix of the flags and of what belongs to them."""
FLAGS: Final = ("nan_detected", "inf_detected", "repetition_loop_detected", "truncated")
"""The first flags, by the names behind :data:`HEALTH`; the only values of the metric's label ``flag``."""
CONDITIONS: Final = (
    "sustained_high_entropy", "distribution_collapsed", "traffic_shifted", "template_detected", "alarm_raised",
)  # fmt: skip
"""The other flags; as attributes behind :data:`HEALTH` too, but for the last, which is :data:`ALARM_RAISED`."""
QUIET: Final = ("traffic_shifted", "template_detected")
"""Flags that keep neither a request nor its series: the traffic around it has changed, or its structure repeats."""
HARMLESS: Final = ("truncated", *QUIET)
"""Flags that are not fault flags: the output's length was limited, or a quiet one."""
FAULT_FLAGS: Final = tuple(flag for flag in (*FLAGS, *CONDITIONS) if flag not in HARMLESS)
"""The fault flags, the gravest first."""
ALARM_RAISED: Final = "corevital.alarm.raised"
"""Whether the watched maximum crossed its threshold; absent where nothing was watched."""
ALARM_ONSET: Final = "corevital.alarm.onset"
"""Output index at which it did."""
ALARM_SIGNAL: Final = "corevital.alarm.signal"
"""What was watched: the name of a feature."""
HIGH_ENTROPY_STEPS: Final = "corevital.health.high_entropy_steps"
"""Tokens whose entropy was above ``COREVITAL_HIGH_ENTROPY_BITS``."""
HIGH_ENTROPY_RUN: Final = "corevital.health.high_entropy_run"
"""The longest run of such tokens; each other token subtracts two."""
LOOP_ONSET: Final = "corevital.health.loop_onset"
"""Output index where the repeating part begins."""
LOOP_PERIOD: Final = "corevital.health.loop_period"
"""Length of the repeating part, in tokens."""
TEMPLATE_ONSET: Final = "corevital.health.template_onset"
"""Output index where the first copy of the structure begins."""
TEMPLATE_PERIOD: Final = "corevital.health.template_period"
"""Length of the structure, in tokens."""
REPETITION_SHARE: Final = "corevital.repetition_share"
"""The largest share, among 128 successive tokens, of those that end four tokens seen within the 512 before. Also the
name of a metric: histogram, ``{share}``."""
REPETITION_SHARE_BUCKETS: Final = tuple(step / 20 for step in range(21))
"""Steps of 0.05; the first is for none."""
ENTROPY: Final = "corevital.entropy."
"""Bits. Prefix of ``mean``, ``max``, ``std``, ``slope``, ``sum``, ``early``, ``change``, ``group_max``, ``rebound``;
and of the count ``bursts``."""
SURPRISAL: Final = "corevital.surprisal."
"""Bits, of the tokens really sampled. Prefix of ``mean``, ``max``, ``std``, ``sum``, ``early``."""
SURPRISAL_ESTIMATED: Final = "corevital.surprisal.estimated"
"""Tokens whose surprisal is an estimate; absent where there is none."""
PERPLEXITY: Final = "corevital.perplexity"
"""2 to the power of the mean surprisal."""
MARGIN: Final = "corevital.margin."
"""p1 - p2. Prefix of ``mean``, ``min``, ``early``."""
TOPK_MASS_MEAN: Final = "corevital.topk_mass.mean"
"""Probability of the 10 likeliest tokens."""
CONFIDENCE: Final = "corevital.confidence."
"""Minus the mean log-probability (nats) of the 20 likeliest tokens. Prefix of ``mean``, ``min``, ``early``,
``tail``, ``change``."""
TOKENS_OBSERVED: Final = "corevital.tokens.observed"
"""Tokens whose logits we saw; :data:`USAGE_OUTPUT_TOKENS`, unless :data:`INCOMPLETE`."""
TOKENS_FORCED: Final = "corevital.tokens.forced"
"""Of those, tokens that were the only ones allowed, by a grammar as a rule; absent where there is none, or where the
grammar comes after the logits that we see (``pre_grammar``). No mean or extreme is of them, except that they
count as 0 in means of 16 successive entropies."""
SEGMENTS: Final = {
    "reasoning": "corevital.reasoning.", "answer": "corevital.answer.", "tool_call": "corevital.tool_call.",
}  # fmt: skip
"""Prefixes of ``tokens``, ``entropy.mean`` and ``surprisal.mean`` of each part of the output, where the engine knows
them. :data:`REASONING_TOKENS` is also the name of a metric."""
SEGMENT_NUMBERS: Final = tuple(
    prefix + name for prefix in SEGMENTS.values() for name in ("tokens", "entropy.mean", "surprisal.mean")
)
"""Those attributes."""
RISK_SEGMENT: Final = "corevital.risk.segment"
"""The part that the risk is of: ``answer``, or ``tool_call`` where that is longer; absent where it is of the whole."""
INCOMPLETE: Final = "corevital.incomplete"
"""True where not every returned token was observed; otherwise absent."""
LOGITS_STAGE: Final = "corevital.logits.stage"
"""Which logits the engine let us see: ``raw``, ``post_penalty`` or ``pre_grammar``."""
ENGINE: Final = "corevital.engine"
"""The serving engine's name."""
ENGINE_VERSION: Final = "corevital.engine.version"
"""The engine's own version."""
RUNNER: Final = "corevital.runner"
"""The engine's model runner, ``unknown`` where it is not known."""
VERSION: Final = "corevital.version"
"""Our version."""
CAPTURE: Final = "corevital.capture"
"""The capture mode that applied."""
SAMPLED: Final = "corevital.sampled"
"""False where the sample rate left the request out and it was kept for its risk or a flag alone; else absent."""
SEQUENCE: Final = "corevital.sequence"
"""Number of the sequence within its request."""
ROLE: Final = "corevital.role"
"""``prefill`` for the first leg of disaggregated serving; absent for a client's own request."""
PREFILL_REQUEST_ID: Final = "corevital.prefill.request_id"
"""Both legs: the engine's id of the first."""
TRANSFER_ID: Final = "corevital.transfer.id"
"""Both legs: the router's id of their transfer, where its KV connector uses one."""
BATCH: Final = "corevital.batch.traceparent"
"""Of an engine that has one span for several requests: that span, as a W3C ``traceparent``. The span is linked to
it."""
PROMPT_HASH: Final = "corevital.prompt.hash"
"""HMAC-SHA256 of the prompt's tokens under ``COREVITAL_PROMPT_HASH_KEY``, 32 hex digits; absent without a key."""
TAGS: Final = "corevital.tags"
"""The request's own ``corevital_tags``; absent where there are none."""

# Span attributes: what the engine's core says, each absent where it does not

QUEUE_S: Final = "corevital.queue_s"
"""Seconds from its arrival in the engine's core to its first scheduling."""
PREFILL_S: Final = "corevital.prefill_s"
"""Seconds from there to its first token."""
DECODE_S: Final = "corevital.decode_s"
"""Seconds from there to its end in the core."""
PREEMPTIONS: Final = "corevital.preemptions"
"""Times it was taken out of the batch and computed again. Also the name of a metric: counter, ``{preemption}``."""
DATA_PARALLEL_RANK: Final = "corevital.data_parallel_rank"
"""The rank that served it; absent without data parallelism."""
STOP_REASON: Final = "corevital.stop_reason"
"""The id of the stop token that ended it, or ``stop_string``, or that string with ``COREVITAL_CAPTURE_CONTENT=1``; or
``corevital:loop``, ``corevital:nan``, ``corevital:alarm`` where ``corevital_stop_on`` did. Absent at the
end-of-sequence token."""
CACHED_TOKENS_SOURCE: Final = "corevital.cached_tokens.source"
"""``local`` (the engine's own cache), ``external`` (a KV connector) or ``mixed``; absent where no token was cached."""
DRAFT_ACCEPTED_TOKENS: Final = "corevital.draft.accepted_tokens"
"""Draft tokens that were accepted, under speculative decoding. Also the name of a metric: counter, ``{token}``."""

# Event, as a log record and as a span event: gen-ai-events.md

EVALUATION_EVENT: Final = "gen_ai.evaluation.result"
"""The risk, as an evaluation of the output: the event name of a log record with the ids of the span, and a span event.
The API of span events is deprecated; they stay for backends that read no log records."""
EVALUATION_NAME: Final = "gen_ai.evaluation.name"
"""Always :data:`RISK_SCORE`."""
EVALUATION_SCORE_VALUE: Final = "gen_ai.evaluation.score.value"
"""The score; 1 is bad. Absent where there is none."""
EVALUATION_SCORE_LABEL: Final = "gen_ai.evaluation.score.label"
"""The level: ``low``, ``medium``, ``high`` or ``unknown``."""
EVALUATION_EXPLANATION: Final = "gen_ai.evaluation.explanation"
"""The factors and what the score rests on."""

# Resource attributes: service.* from the general conventions, the rest ours

RESOURCE_ENGINE: Final = "corevital.engine."
"""Prefix of ``name``, ``version``, ``runner``, ``dtype``, ``quantization``, ``max_model_len``,
``tensor_parallel_size``, ``pipeline_parallel_size``, ``data_parallel_size``: the engine as it was started."""
RESOURCE_DEVICE: Final = "corevital.device."
"""Prefix of ``type`` (``cuda``, ``cpu``, …), ``name`` and ``memory_bytes`` of one device."""

# Span attributes that one backend needs: see spans/backends.py

LANGFUSE_METADATA: Final = "langfuse.observation.metadata."
"""Prefix of what Langfuse can filter observations by."""
LANGFUSE_LEVEL: Final = "langfuse.observation.level"
"""``WARNING`` or ``ERROR``; https://langfuse.com/integrations/native/opentelemetry"""
LANGFUSE_STATUS: Final = "langfuse.observation.status_message"
"""Why."""
LANGFUSE_TAGS: Final = "langfuse.trace.tags"
"""The request's ``corevital_tags``."""
OPENLIT_SYSTEM: Final = "gen_ai.system"
"""The provider, by its older name."""
OPENLIT_TOTAL_TOKENS: Final = "gen_ai.usage.total_tokens"
"""Input and output."""
OPENLIT_AT_RISK: Final = "corevital.at_risk"
"""``yes`` (high risk, or a flag) or ``no``: one value to filter by."""
OPENINFERENCE_KIND: Final = "openinference.span.kind"
"""``LLM``; https://arize-ai.github.io/openinference/spec/semantic_conventions.html"""
OPENINFERENCE_MODEL: Final = "llm.model_name"
"""The model."""
OPENINFERENCE_PROMPT_TOKENS: Final = "llm.token_count.prompt"
"""Input."""
OPENINFERENCE_COMPLETION_TOKENS: Final = "llm.token_count.completion"
"""Output."""
OPENINFERENCE_TOTAL_TOKENS: Final = "llm.token_count.total"
"""Both."""

# Span events: ours

SERIES_EVENT: Final = "corevital.series"
"""Per-token arrays ``entropy``, ``surprisal``, ``margin``, ``topk_mass`` from token ``offset`` on."""
SERIES_EVENT_TOKENS: Final = 256
"""Tokens an event holds at most."""
SERIES_UNKNOWN: Final = -1.0
"""Stands in a series for a value that is not known: none of the series can be negative, and JSON has no NaN."""

# Metrics: ours

REQUESTS: Final = "corevital.requests"
"""Counter, ``{request}``; ``finish_reason``, ``risk_level``."""
REQUESTS_FAULTY: Final = "corevital.requests.faulty"
"""Counter, ``{request}``; ``flag`` is the gravest of the sequence's :data:`FAULT_FLAGS`."""
REQUESTS_INTERNAL: Final = "corevital.requests.internal"
"""Counter, ``{request}``: sequences that serve no client directly; ``kind``."""
REQUESTS_STOPPED: Final = "corevital.requests.stopped"
"""Counter, ``{request}``: sequences that ``corevital_stop_on`` ended; ``reason`` is one of
:data:`corevital.supported.STOP_ON`."""
TOKENS_SAVED: Final = "corevital.tokens.saved"
"""Counter, ``{token}``: an estimate, the tokens that those sequences had left up to their ``max_tokens``."""
RISK_SCORE_BUCKETS: Final = tuple(step / 20 for step in range(1, 21))
"""Steps of 0.05."""
HEALTH_FLAGS: Final = "corevital.health.flags"
"""Counter, ``{flag}``; ``flag``."""
HEALTH_WARNINGS: Final = "corevital.health.warnings"
"""Counter, ``{warning}``; ``warning`` is one of :data:`CONDITIONS`."""
TOKENS: Final = "corevital.tokens"
"""Counter of observed tokens, ``{token}``."""
ENTROPY_METRIC: Final = "corevital.entropy"
"""Histogram of per-request means, bits."""
SURPRISAL_METRIC: Final = "corevital.surprisal"
"""Histogram of per-request means, bits."""
BITS_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0)
"""Bits: fine where served models are, and up to the uniform distribution over a small vocabulary."""
REQUEST_QUEUE: Final = "corevital.request.queue"
"""Histogram, seconds, the buckets of :data:`SERVER_TIME_TO_FIRST_TOKEN`."""
REQUEST_PREFILL: Final = "corevital.request.prefill"
"""Histogram, seconds, the buckets of :data:`SERVER_TIME_TO_FIRST_TOKEN`."""
REQUEST_DECODE: Final = "corevital.request.decode"
"""Histogram, seconds, the buckets of :data:`SERVER_REQUEST_DURATION`."""
REASONING_TOKENS: Final = "corevital.reasoning.tokens"
"""Counter, ``{token}``."""
SEQUENCES_RUNNING: Final = "corevital.sequences.running"
"""Gauge, ``{sequence}``."""
SEQUENCES_LOOPING: Final = "corevital.sequences.looping"
"""Gauge, ``{sequence}``."""
SEQUENCES_ALARMED: Final = "corevital.sequences.alarmed"
"""Gauge, ``{sequence}``."""
SEQUENCES_UNOBSERVED: Final = "corevital.sequences.unobserved"
"""Counter, ``{sequence}``: the engine ran them and nobody followed them."""
BUILD_INFO: Final = "corevital.build_info"
"""Gauge, ``{process}``: processes by the versions of corevital and of the engine whose requests they report."""
DROPPED: Final = "corevital.telemetry.dropped"
"""Counter; ``what``: record, span, log, report; ``why``."""
EXPORTED: Final = "corevital.telemetry.exported"
"""Counter; ``signal``: traces, metrics, logs."""
TELEMETRY_LAG: Final = "corevital.telemetry.lag"
"""Histogram, seconds from a sequence's end to its report."""
TELEMETRY_LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Seconds; a sequence whose records do not come waits for them for two."""
TELEMETRY_CPU_TIME: Final = "corevital.telemetry.cpu_time"
"""Counter, CPU seconds of the telemetry thread in the API server process."""
TELEMETRY_FAULTS: Final = "corevital.telemetry.faults"
"""Counter, ``{fault}``: errors of ours, none of which reached a request."""
TELEMETRY_QUEUE: Final = "corevital.telemetry.queue"
"""Gauge, ``{item}``; ``what``: event, report. What waits for the telemetry thread, and for the store."""

# Metrics: gen-ai-metrics.md

SERVER_REQUEST_DURATION: Final = "gen_ai.server.request.duration"
"""Histogram, seconds."""
SERVER_REQUEST_DURATION_BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))
"""Seconds: 0.01 to 81.92."""
SERVER_TIME_TO_FIRST_TOKEN: Final = "gen_ai.server.time_to_first_token"  # noqa: S105 - a name, not a secret
"""Histogram, seconds."""
SERVER_TIME_TO_FIRST_TOKEN_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""Seconds."""
SERVER_TIME_PER_OUTPUT_TOKEN: Final = "gen_ai.server.time_per_output_token"  # noqa: S105 - a name, not a secret
"""Histogram, seconds, after the first token."""
SERVER_TIME_PER_OUTPUT_TOKEN_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
"""Seconds."""

FEATURES: Final = {
    "tokens": TOKENS_OBSERVED,
    "entropy_mean": ENTROPY + "mean",
    "entropy_max": ENTROPY + "max",
    "entropy_std": ENTROPY + "std",
    "entropy_slope": ENTROPY + "slope",
    "entropy_sum": ENTROPY + "sum",
    "entropy_early": ENTROPY + "early",
    "entropy_change": ENTROPY + "change",
    "entropy_group_max": ENTROPY + "group_max",
    "entropy_rebound": ENTROPY + "rebound",
    "entropy_bursts": ENTROPY + "bursts",
    "high_entropy_steps": HIGH_ENTROPY_STEPS,
    "high_entropy_run": HIGH_ENTROPY_RUN,
    "surprisal_mean": SURPRISAL + "mean",
    "surprisal_max": SURPRISAL + "max",
    "surprisal_std": SURPRISAL + "std",
    "surprisal_sum": SURPRISAL + "sum",
    "surprisal_early": SURPRISAL + "early",
    "perplexity": PERPLEXITY,
    "margin_mean": MARGIN + "mean",
    "margin_min": MARGIN + "min",
    "margin_early": MARGIN + "early",
    "margin_close_share": MARGIN + "close_share",
    "topk_mass_mean": TOPK_MASS_MEAN,
    "confidence_mean": CONFIDENCE + "mean",
    "confidence_min": CONFIDENCE + "min",
    "confidence_early": CONFIDENCE + "early",
    "confidence_tail": CONFIDENCE + "tail",
    "confidence_change": CONFIDENCE + "change",
    "repetition_share": REPETITION_SHARE,
}
"""The features, by their names in :class:`~corevital_otel.report.Features`, and the attribute that each becomes."""
ASSESSED_PREFIX: Final = "corevital.assessed."
ASSESSED: Final = {name: ASSESSED_PREFIX + attribute.removeprefix("corevital.") for name, attribute in FEATURES.items()}
"""The features of the part that :data:`RISK_SEGMENT` names, and the attribute that each becomes in the store. A span
does not have them: with them it would have more attributes than backends keep."""
