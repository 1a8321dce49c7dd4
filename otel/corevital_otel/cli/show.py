"""``corevital show``: one request whole, its per-token series drawn in the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import plotext  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table
from rich.text import Text

from corevital.text import printable
from corevital_otel import conventions as names
from corevital_otel.cli import CommandError
from corevital_otel.cli.common import argument, cell, console, mention_damaged, number_of, risk_text, say, store
from corevital_otel.report import Series
from corevital_otel.store.reader import StoredReport, StoreError

_CHARTS: Final = (("entropy", "entropy (bits)"), ("surprisal", "surprisal (bits)"), ("margin", "margin p1 - p2"))
_CHART_HEIGHT: Final = 9
_CHART_WIDTH: Final = 80
_PEAK: Final = "▲"
_MAX_CANDIDATES: Final = 5
_SHOWN_ID: Final = 100
"""Characters of an id in an error's line."""
_BASES: Final = {
    "prior": "By the shipped default, which is not calibrated on this model and no probability.",
    "baseline": "By its place among this model's own recent requests, which is no probability.",
    "calibrated": "Of runs with this score, about {score:.0%} were bad where the profile was fitted.",
}
"""What a score means, by its basis."""
_FLAG_TEXTS: Final = {
    "nan_detected": "NaN among the logits: the model or its weights are broken",
    "inf_detected": "+Inf among the logits: the model overflowed",
    "sustained_high_entropy": "sustained high entropy: it was guessing for a long stretch",
    "distribution_collapsed": "distribution collapsed: step after step the same, whatever came before",
    "traffic_shifted": "traffic shifted: this model's requests were not what they had been",
    "truncated": "truncated: the length limit ended the answer",
}


def run(request_id: str, *, as_json: bool, db: Path | None) -> None:
    """See :func:`corevital_otel.cli.show`."""
    request_id = argument(request_id)
    reader = store(db)
    try:
        reports = reader.get(request_id)
    except StoreError as error:
        raise CommandError(str(error)) from None
    mention_damaged(reader)
    ids = list(dict.fromkeys(report.request_id for report in reports))
    if not ids:
        raise CommandError(f"no request {request_id[:_SHOWN_ID]!r} in the store: `corevital spans` lists all")
    if len(ids) > 1:
        more = ", …" if len(ids) > _MAX_CANDIDATES else ""
        several = ", ".join(printable(one, _SHOWN_ID) for one in ids[:_MAX_CANDIDATES])
        raise CommandError(f"{request_id[:_SHOWN_ID]!r} is the beginning of several: {several}{more}")
    if as_json:
        say(json.dumps([report.as_json() for report in reports], indent=2))
        return
    screen = console()
    for report in reports:
        _print(screen, report)


def _print(screen: Console, report: StoredReport) -> None:
    found = report.summary
    number = f"  sequence {cell(report.sequence)}" if report.sequence else ""
    screen.print(Text(f"{cell(report.request_id)}{number}", style="bold"))
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(report):
        facts.add_row(Text(name, style="dim"), value)
    screen.print(facts)
    for flag in report.flags:
        screen.print(Text(f"! {_flag(flag, found)}", style="red"))
    if found.get("corevital.incomplete"):
        screen.print(Text("! incomplete: not every token was observed", style="yellow"))
    screen.print()
    if report.output_tokens == 0:
        screen.print("No per-token series: the request ended before its first token.\n", style="dim")
    elif report.series is not None and len(report.series):
        width = min(screen.width, _CHART_WIDTH)
        onset = _whole(found, "corevital.health.loop_onset")
        peaks = _peaks(report.series, _whole(found, "corevital.health.high_entropy_steps") or 0)
        screen.print(_legend(peaks, onset), style="dim")
        for name, title in _CHARTS:
            say(_chart(report.series, name, title, width, onset, peaks if name == "entropy" else []))
    else:
        screen.print(
            f"No per-token series: capture mode {_text(found, 'corevital.capture')} did not keep it. "
            "To have it, serve with COREVITAL_CAPTURE=full, "
            'or send "vllm_xargs": {"corevital_capture": "full"} with the request.\n',
            style="dim",
        )


def _facts(report: StoredReport) -> list[tuple[str, Text | str]]:
    found = report.summary
    ttft = number_of(found.get("gen_ai.response.time_to_first_chunk"))
    tokens = f"{cell(report.prompt_tokens)} in, {cell(report.output_tokens)} out"
    if ttft is not None:
        tokens += f", first after {ttft * 1000:.0f} ms"
    seen = ("corevital.engine", "corevital.engine.version", "corevital.runner")
    engine = " ".join(_text(found, name) for name in seen if name in found)
    logits = f"{_text(found, 'corevital.logits.stage')} logits"
    finish = f"{_text(found, 'gen_ai.operation.name')}, finish: {cell(report.finish_reason)}"
    return [
        ("model", f"{cell(report.model)}  ({finish})"),
        ("ended", cell(report.created_at_utc)),
        ("trace", f"{cell(report.trace_id)} / {cell(report.span_id)}"),
        ("tokens", tokens),
        ("request", _parameters(found)),
        ("measured", f"{engine}, {logits}, capture {_text(found, 'corevital.capture')}"),
        ("risk", risk_text(report.risk_score, report.risk_level)),
        ("that is", explanation(number_of(report.risk_score), cell(report.risk_basis), _factors(found))),
        ("entropy", _numbers(found, "entropy", ("mean", "max", "std", "sum"), " bits")),
        ("surprisal", _numbers(found, "surprisal", ("mean", "max", "sum"), " bits")),
        ("margin", _numbers(found, "margin", ("mean", "min"))),
        ("unsure", f"{_whole(found, 'corevital.health.high_entropy_steps') or 0} high-entropy steps"),
    ]


def _text(found: dict[str, Any], name: str) -> str:
    """A value of the summary, which anyone may have edited, as printable text."""
    return cell(found.get(name, "unknown"))


def _whole(found: dict[str, Any], name: str) -> int | None:
    known = number_of(found.get(name))
    return None if known is None else int(known)


def _factors(found: dict[str, Any]) -> list[str]:
    factors = found.get(names.RISK_FACTORS)
    return [cell(factor) for factor in factors] if isinstance(factors, list) else []


def _parameters(found: dict[str, Any]) -> str:
    names = ("temperature", "top_p", "top_k", "max_tokens", "seed")
    known = [(name, number_of(found.get(f"gen_ai.request.{name}"))) for name in names]
    return ", ".join(f"{name} {value:g}" for name, value in known if value is not None)


def explanation(score: float | None, basis: str, factors: Sequence[str]) -> str:
    """What a score means and what raised it, as a sentence."""
    if score is None:
        return "No score: too few tokens."
    reasons = f"{', '.join(factors[:-1])} and {factors[-1]}" if len(factors) > 1 else "".join(factors)
    because = f"What raised it: {reasons}." if reasons else "Nothing about it stands out."
    meaning = _BASES[basis].format(score=score) if basis in _BASES else f"A score of basis {basis}."
    return f"{meaning} {because}"


def _numbers(found: dict[str, Any], what: str, names: tuple[str, ...], unit: str = "") -> str:
    known = [(name, number_of(found.get(f"corevital.{what}.{name}"))) for name in names]
    return ", ".join(f"{name} {value:.3g}" for name, value in known if value is not None) + unit


def _flag(flag: object, found: dict[str, Any]) -> str:
    if flag == "repetition_loop_detected":
        onset, period = _text(found, "corevital.health.loop_onset"), _text(found, "corevital.health.loop_period")
        return f"repetition loop: from token {onset} on, every {period} tokens the same again"
    if flag == "alarm_raised":
        signal, onset = _text(found, names.ALARM_SIGNAL), _text(found, names.ALARM_ONSET)
        return f"alarm: from token {onset} on, {signal} was beyond what good runs reach"
    return _FLAG_TEXTS.get(str(flag), cell(flag))


def _peaks(series: Series, count: int) -> list[int]:
    """Indices of the high-entropy steps: the ``count`` highest entropies, since the threshold was the server's."""
    known = [(value, i) for i, value in enumerate(series.entropy.tolist()) if math.isfinite(value)]
    return sorted(i for _, i in sorted(known, reverse=True)[: max(count, 0)])


def _legend(peaks: list[int], onset: int | None) -> str:
    parts = ["by output token"]
    if peaks:
        parts.append(f"{_PEAK} high-entropy step")
    if onset is not None:
        parts.append(f"│ the loop begins, at token {onset}")
    return "   ".join(parts)


def _chart(series: Series, name: str, title: str, width: int, onset: int | None, peaks: list[int]) -> str:
    """A series over the output index as text, without colours so that a pipe can take it."""
    values = getattr(series, name).tolist()
    points = [(i, value) for i, value in enumerate(values) if math.isfinite(value)]
    if not points:
        return f"{title}: no value is known"
    top = max(1, math.ceil(max(value for _, value in points)))
    last = len(values) - 1
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)  # by default the test's or the pipe's idea of a terminal cuts it
    plotext.plot_size(width, _CHART_HEIGHT)
    plotext.title(title)
    plotext.ylim(0, top)
    plotext.yticks([0, top / 2, top], [f"{tick:4g}" for tick in (0, top / 2, top)])  # one margin for all charts
    plotext.xlim(0, max(last, 1))
    ticks = sorted({round(last * part / 4) for part in range(5)})
    plotext.xticks(ticks, [str(tick) for tick in ticks])
    plotext.plot([i for i, _ in points], [value for _, value in points], marker="braille")
    if peaks:
        plotext.scatter(peaks, [values[i] for i in peaks], marker=_PEAK)
    if onset is not None and 0 <= onset <= last:
        plotext.vline(onset)
    lines = plotext.uncolorize(plotext.build()).splitlines()
    return "\n".join(line.rstrip() for line in lines)
