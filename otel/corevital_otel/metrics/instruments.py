"""The table of all instruments. Names, units and buckets come from :mod:`corevital_otel.conventions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from opentelemetry.context import Context

from corevital_otel import conventions as names

Kind = Literal["counter", "gauge", "histogram"]

BITS: Final = "bits"
"""Not UCUM's ``bit``: translations to Prometheus know no unit of information and append this one unchanged."""
SECONDS: Final = "s"
_SUFFIXES: Final = {BITS: "bits", SECONDS: "seconds"}

OTHER: Final = "other"
"""A label's value in place of one that is not allowed."""
FINISH_REASONS: Final = ("stop", "length", "abort", "error", "repetition")

_MODEL: Final = names.REQUEST_MODEL
_CONVENTIONS: Final = (names.OPERATION_NAME, names.PROVIDER_NAME, names.ERROR_TYPE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """One metric.

    Attributes:
        name: its OpenTelemetry name.
        unit: UCUM, except :data:`BITS`; what is counted is in braces.
        text: what it measures.
        labels: its labels, by their OpenTelemetry names; the same in both outputs.
        conventions: further attributes of the GenAI conventions, over OTLP only: ``/metrics`` has only the contract's.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: Kind
    unit: str
    text: str
    labels: tuple[str, ...] = ()
    conventions: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def prometheus(self) -> str:
        """Its Prometheus name, as OpenTelemetry's translation makes it; without a counter's ``_total``."""
        suffix = _SUFFIXES.get(self.unit)
        return self.name.replace(".", "_") + (f"_{suffix}" if suffix and not self.name.endswith(suffix) else "")


class Output(Protocol):
    """Where measurements go."""

    def put(self, instrument: Instrument, value: float, labels: Mapping[str, str], context: Context) -> None:
        """Add to a counter, set a gauge, or record into a histogram.

        Args:
            labels: exactly those of the instrument, and of its ``conventions`` those that apply.
            context: holds the span that the measurement belongs to, for an exemplar; or none.
        """

    def close(self, timeout_s: float) -> None:
        """Deliver what there is, within this bound, and take this process's sequences off the gauges."""


INSTRUMENTS: Final = {
    instrument.name: instrument
    for instrument in (
        Instrument(
            name=names.REQUESTS,
            kind="counter",
            unit="{request}",
            text="Sequences that ended, one for each of a request's n.",
            labels=(_MODEL, "finish_reason", "risk_level"),
        ),
        Instrument(
            name=names.REQUESTS_FAULTY,
            kind="counter",
            unit="{request}",
            text="Sequences with a fault flag, each once, under its gravest; without those that ended in an error.",
            labels=(_MODEL, "flag"),
        ),
        Instrument(
            name=names.REQUESTS_INTERNAL,
            kind="counter",
            unit="{request}",
            text="Sequences that serve no client directly, and are not measured.",
            labels=("kind",),
        ),
        Instrument(
            name=names.REQUESTS_STOPPED,
            kind="counter",
            unit="{request}",
            text="Sequences that corevital_stop_on ended early.",
            labels=(_MODEL, "reason"),
        ),
        Instrument(
            name=names.TOKENS_SAVED,
            kind="counter",
            unit="{token}",
            text="An estimate: tokens that sequences ended by corevital_stop_on had left up to their max_tokens.",
            labels=(_MODEL,),
        ),
        Instrument(
            name=names.RISK_SCORE,
            kind="histogram",
            unit="{score}",
            text="Risk scores; 1 is bad.",
            labels=(_MODEL, "basis"),
            buckets=names.RISK_SCORE_BUCKETS,
        ),
        Instrument(
            name=names.HEALTH_FLAGS,
            kind="counter",
            unit="{flag}",
            text="Health flags raised, each once a sequence.",
            labels=(_MODEL, "flag"),
        ),
        Instrument(
            name=names.HEALTH_WARNINGS,
            kind="counter",
            unit="{warning}",
            text="Other flags raised, each once a sequence.",
            labels=(_MODEL, "warning"),
        ),
        Instrument(
            name=names.TOKENS,
            kind="counter",
            unit="{token}",
            text="Output tokens whose logits were observed.",
            labels=(_MODEL,),
        ),
        Instrument(
            name=names.ENTROPY_METRIC,
            kind="histogram",
            unit=BITS,
            text="Mean entropy of a sequence's tokens.",
            labels=(_MODEL,),
            buckets=names.BITS_BUCKETS,
        ),
        Instrument(
            name=names.SURPRISAL_METRIC,
            kind="histogram",
            unit=BITS,
            text="Mean surprisal of a sequence's sampled tokens.",
            labels=(_MODEL,),
            buckets=names.BITS_BUCKETS,
        ),
        Instrument(
            name=names.REPETITION_SHARE,
            kind="histogram",
            unit="{share}",
            text="Largest share of repeated tokens among 128 successive ones of a sequence.",
            labels=(_MODEL,),
            buckets=names.REPETITION_SHARE_BUCKETS,
        ),
        Instrument(
            name=names.SEQUENCES_RUNNING,
            kind="gauge",
            unit="{sequence}",
            text="Measured sequences in the engine now, waiting ones included.",
            labels=(_MODEL,),
        ),
        Instrument(
            name=names.SEQUENCES_LOOPING,
            kind="gauge",
            unit="{sequence}",
            text="Of those, the ones in a repetition loop.",
            labels=(_MODEL,),
        ),
        Instrument(
            name=names.SEQUENCES_ALARMED,
            kind="gauge",
            unit="{sequence}",
            text="Of those, the ones with an alarm raised.",
            labels=(_MODEL,),
        ),
        # A counter: a sequence is unobserved once and for good, and an alert needs an increase from 0. A gauge would
        # have to know when such a sequence ends, which is just what nobody follows.
        Instrument(
            name=names.SEQUENCES_UNOBSERVED,
            kind="counter",
            unit="{sequence}",
            text="Sequences that the engine ran and nobody measured.",
        ),
        Instrument(
            name=names.SERVER_REQUEST_DURATION,
            kind="histogram",
            unit=SECONDS,
            text="From a request's arrival to its last token.",
            labels=(_MODEL,),
            conventions=_CONVENTIONS,
            buckets=names.SERVER_REQUEST_DURATION_BUCKETS,
        ),
        Instrument(
            name=names.SERVER_TIME_TO_FIRST_TOKEN,
            kind="histogram",
            unit=SECONDS,
            text="From a request's arrival to its first token, where it was answered to its end.",
            labels=(_MODEL,),
            conventions=_CONVENTIONS,
            buckets=names.SERVER_TIME_TO_FIRST_TOKEN_BUCKETS,
        ),
        Instrument(
            name=names.SERVER_TIME_PER_OUTPUT_TOKEN,
            kind="histogram",
            unit=SECONDS,
            text="Time per output token after the first, where the request was answered to its end.",
            labels=(_MODEL,),
            conventions=_CONVENTIONS,
            buckets=names.SERVER_TIME_PER_OUTPUT_TOKEN_BUCKETS,
        ),
        Instrument(
            name=names.REQUEST_QUEUE,
            kind="histogram",
            unit=SECONDS,
            text="From a sequence's arrival in the engine's core to its first scheduling.",
            labels=(_MODEL,),
            buckets=names.SERVER_TIME_TO_FIRST_TOKEN_BUCKETS,
        ),
        Instrument(
            name=names.REQUEST_PREFILL,
            kind="histogram",
            unit=SECONDS,
            text="From a sequence's first scheduling to its first token.",
            labels=(_MODEL,),
            buckets=names.SERVER_TIME_TO_FIRST_TOKEN_BUCKETS,
        ),
        Instrument(
            name=names.REQUEST_DECODE,
            kind="histogram",
            unit=SECONDS,
            text="From a sequence's first token to its end, where it has several tokens and reached its end.",
            labels=(_MODEL,),
            buckets=names.SERVER_REQUEST_DURATION_BUCKETS,
        ),
        Instrument(
            name=names.PREEMPTIONS,
            kind="counter",
            unit="{preemption}",
            text="Times a sequence was taken out of the batch and computed again.",
            labels=(_MODEL,),
        ),
        Instrument(
            name=names.REASONING_TOKENS,
            kind="counter",
            unit="{token}",
            text="Output tokens that a reasoning parser took out of the answer.",
            labels=(_MODEL,),
        ),
        Instrument(
            name=names.DRAFT_ACCEPTED_TOKENS,
            kind="counter",
            unit="{token}",
            text="Draft tokens that were accepted, under speculative decoding.",
            labels=(_MODEL,),
        ),
        Instrument(
            name=names.BUILD_INFO,
            kind="gauge",
            unit="{process}",
            text="Processes that report requests, by the versions of corevital and of the engine.",
            labels=("version", "engine", "engine_version"),
        ),
        Instrument(
            name=names.DROPPED,
            kind="counter",
            unit="{item}",
            text="Telemetry that was lost.",
            labels=("what", "why"),
        ),
        Instrument(
            name=names.EXPORTED,
            kind="counter",
            unit="{item}",
            text="Telemetry that an OTLP endpoint accepted: spans, metrics' data points, or log records.",
            labels=("signal",),
        ),
        Instrument(
            name=names.TELEMETRY_LAG,
            kind="histogram",
            unit=SECONDS,
            text="From a sequence's end to its report.",
            buckets=names.TELEMETRY_LAG_BUCKETS,
        ),
        Instrument(
            name=names.TELEMETRY_CPU_TIME,
            kind="counter",
            unit=SECONDS,
            text="CPU time of the telemetry thread in the API server process.",
        ),
        Instrument(
            name=names.TELEMETRY_FAULTS,
            kind="counter",
            unit="{fault}",
            text="Exceptions inside corevital, none of which reached a request.",
        ),
        Instrument(
            name=names.TELEMETRY_QUEUE,
            kind="gauge",
            unit="{item}",
            text="What waits now: events for the telemetry thread, reports for the store.",
            labels=("what",),
        ),
    )
}
"""All instruments, by name."""
