"""One request: what its score and flags mean, its numbers, and its tokens by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from corevital_otel import conventions as names
from corevital_otel.report import Series
from corevital_otel.risk.meaning import flag_text, meaning, stopped
from corevital_otel.risk.summary import parameters, parts
from corevital_otel.store.reader import StoredReport, StoreReader, ids_of
from corevital_otel.ui import pictures, tokens
from corevital_otel.ui.listing import level

_FACTS: Final = (
    ("entropy", ("entropy_mean", "entropy_max", "entropy_sum"), "bits"),
    ("surprisal", ("surprisal_mean", "surprisal_max", "surprisal_sum"), "bits"),
    ("margin", ("margin_mean", "margin_min"), ""),
    ("top-10 mass", ("topk_mass_mean",), ""),
    ("confidence", ("confidence_mean", "confidence_min"), "nats"),
)
_PHASES: Final = (("queue", names.QUEUE_S), ("prefill", names.PREFILL_S), ("decode", names.DECODE_S))


@dataclass(frozen=True, slots=True)
class TraceLink:
    """Where a trace can be seen, as ``https://host/trace/{trace_id}``; ``{span_id}`` may be there too."""

    template: str

    def of(self, report: StoredReport) -> str:
        """The URL for a request's trace."""
        ids = {"{trace_id}": report.trace_id, "{span_id}": report.span_id}
        url = self.template
        for name, value in ids.items():
            url = url.replace(name, quote(value, safe=""))
        return url


def find(db: Path, request_id: str, span_id: str, sequence: int) -> tuple[StoredReport | None, list[StoredReport]]:
    """One sequence with its series, None where there is none; and all of its id, without theirs.

    Args:
        db: the store.
        request_id: may be of several requests: a client can repeat one.
        span_id: of the sequence; "": the newest with this number.
        sequence: the number; not used where there is a span.

    Raises:
        StoreError: the store cannot be read.
    """
    store = StoreReader(db)
    siblings = _exact(store.get_whole(request_id, series=False), request_id)
    newest = [one.span_id for one in siblings if one.sequence == sequence][-1:]
    chosen = store.get_span(span_id or "".join(newest))
    if chosen is not None and chosen.request_id not in ids_of(request_id):
        chosen = None
    return chosen, siblings


def all_of(db: Path, request_id: str) -> list[StoredReport]:
    """All sequences with this id, with their series.

    Raises:
        StoreError: the store cannot be read.
    """
    return _exact(StoreReader(db).get_whole(request_id), request_id)


def _exact(found: list[StoredReport], request_id: str) -> list[StoredReport]:
    return [report for report in found if report.request_id == request_id] or found


def view(report: StoredReport, siblings: Sequence[StoredReport], start: int, link: TraceLink | None) -> dict[str, Any]:
    """The values of the request's template.

    Args:
        report: the request.
        siblings: all sequences with its id.
        start: the first token that is shown.
        link: where traces can be seen.
    """
    found = report.summary
    series = report.series if report.series is not None and len(report.series) else None
    onset = found.get(names.LOOP_ONSET)
    factors = found.get(names.RISK_FACTORS, [])
    return {
        "report": report,
        "level": level(report.risk_level),
        "siblings": [_sibling(one) for one in siblings] if len(siblings) > 1 else [],
        "meaning": meaning(report.risk_score, report.risk_basis),
        "factors": factors,
        "flags": [(flag, flag_text(flag, found), flag in names.HARMLESS) for flag in report.flags],
        "incomplete": found.get(names.INCOMPLETE) is True,
        "facts": _facts(report),
        "numbers": _numbers(report),
        "output_parts": parts(found),
        "phases": _phases(report),
        "tags": found.get(names.TAGS, []),
        "trace_url": None if link is None else link.of(report),
        "capture": found.get(names.CAPTURE, "unknown"),
        "charts": None if series is None else _charts(series, onset),
        "onset": onset if series is not None and isinstance(onset, int) and onset < len(series) else None,
        **tokens.view(series, report.content, start, onset),
    }


def series_json(report: StoredReport) -> dict[str, Any]:
    """The series for the charts, null where a value is not known, and where a loop starts."""
    onset = report.summary.get(names.LOOP_ONSET)
    return {"series": report.as_json()["series"], "onset": onset if isinstance(onset, int) else None}


def _sibling(one: StoredReport) -> dict[str, Any]:
    return {"number": one.sequence, "span": one.span_id, "ended": _ended(one), "level": level(one.risk_level)}


def _ended(report: StoredReport) -> str:
    return report.created_at_utc.replace("T", " ").replace("Z", " UTC")


def _facts(report: StoredReport) -> list[tuple[str, str]]:
    found = report.summary
    first = found.get(names.RESPONSE_TIME_TO_FIRST_CHUNK)
    engine = " ".join(str(found[name]) for name in (names.ENGINE, names.ENGINE_VERSION, names.RUNNER) if name in found)
    early = f" ({reason})" if (reason := stopped(found)) else ""
    facts = [
        ("model", report.model),
        ("ended", _ended(report)),
        ("operation", f"{found.get(names.OPERATION_NAME, 'unknown')}, finish: {report.finish_reason}{early}"),
        ("tokens", f"{report.prompt_tokens:,} in, {report.output_tokens:,} out"),
        ("first token", f"{first * 1000:,.0f} ms" if isinstance(first, int | float) else ""),
        ("parameters", parameters(found)),
        ("measured by", f"{engine}, {found.get(names.LOGITS_STAGE, 'unknown')} logits"),
    ]
    return [(name, value) for name, value in facts if value]


def _numbers(report: StoredReport) -> list[tuple[str, list[tuple[str, float]], str]]:
    rows = []
    for title, features, unit in _FACTS:
        known = [(name.rpartition("_")[2], report.summary.get(names.FEATURES[name])) for name in features]
        if values := [(name, float(value)) for name, value in known if isinstance(value, int | float)]:
            rows.append((title, values, unit))
    return rows


def _phases(report: StoredReport) -> list[dict[str, Any]]:
    """Queue, prefill and decode as parts of a bar, where the engine has reported all three."""
    times = [report.summary.get(attribute) for _, attribute in _PHASES]
    known = [float(time) for time in times if isinstance(time, int | float) and time >= 0]
    if len(known) < len(_PHASES) or not (total := sum(known)):
        return []
    starts = [sum(known[:number]) / total for number in range(len(known))]
    return [
        {"name": name, "seconds": time, "x": pictures.WIDTH * start, "width": pictures.WIDTH * time / total}
        for (name, _), time, start in zip(_PHASES, known, starts, strict=True)
    ]


def _charts(series: Series, onset: object) -> dict[str, Any]:
    """The charts as they are drawn where no script runs."""
    entropy, surprisal, margin = (getattr(series, name).tolist() for name in ("entropy", "surprisal", "margin"))
    top = pictures.top_of([*entropy, *surprisal], 1)
    return {
        "top": top,
        "entropy": pictures.lines(entropy, top),
        "surprisal": pictures.lines(surprisal, top),
        "margin": pictures.lines(margin, 1),
        "onset": pictures.place(onset, len(series)) if isinstance(onset, int) else None,
    }
