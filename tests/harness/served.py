"""A store of requests as a busy server would leave it: several models, levels of risk, flags and tags; generated."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital_otel.measure.capture import is_marked
from corevital_otel.report import Features, Health, RequestReport, Risk, RiskLevel, Series
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store import schema, statements
from corevital_otel.store.content import Content
from corevital_otel.store.rows import Row

MODELS = ("qwen3-8b", "llama-3.3-70b-instruct", "support-adapter")
TAGS = ("checkout", "search", "eval-nightly")
_WORDS = (
    "To", " restore", " a", " backup", ",", " stop", " the", " server", " first", ".", " Then", " run", " `", "restore",
    "`", " with", " the", " name", " of", " the", " file", ":", " it", " is", " check", "ed", " before", " it",
    " takes", " the", " place", " of", " the", " store", ".\n",
)  # fmt: skip
_LOOP = (" and", " then", " restore", " the", " backup", " again", ",")
THRESHOLD = 0.7
VERSION = "0.32.0"
_SPREAD = (0x5DEECE66D1234567890ABCDEF1357, 0x2545F4914F6CDD1D)
"""Odd numbers, by which ids look like ids."""


def fill(
    path: Path,
    reports: Sequence[RequestReport],
    version: str = VERSION,
    text: Callable[[RequestReport], Content | None] = lambda report: None,
) -> Path:
    """Add reports to a store, by the writer's own statements; ``text`` gives the text of each."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        schema.create(connection)
        (first,) = connection.execute("SELECT coalesce(max(id), 0) FROM reports").fetchone()
        resource = statements.resource_id(connection, f'{{"corevital.engine.version":"{version}"}}')
        rows = [
            Row(
                record_of(
                    report,
                    SpanIds(f"{number * _SPREAD[0] % 2**127 + 1:032x}", f"{number * _SPREAD[1] % 2**63 + 1:016x}"),
                ),
                text(report),
            ).encode(resource)
            for number, report in enumerate(reports, first + 1)
        ]
        assert not statements.insert(connection, rows)
    finally:
        connection.close()
    return path


def generated_text(report: RequestReport) -> Content | None:
    """A generated text for a report at high risk or with a flag, as ``COREVITAL_DB_CONTENT=1`` keeps it."""
    if not is_marked(report.risk, report.health):
        return None
    count, onset = len(report.outcome.token_ids), report.health.loop_onset
    tokens = [_WORDS[at % len(_WORDS)] for at in range(count)]
    if onset is not None:
        tokens[onset:] = [_LOOP[at % len(_LOOP)] for at in range(count - onset)]
    margin = () if report.series is None else np.nan_to_num(report.series.margin, nan=0.2).tolist()
    alternatives = tuple(
        ((tokens[at], (1 + lead) / 2), (_WORDS[(at + 3) % len(_WORDS)], (1 - lead) / 2))
        for at, lead in enumerate(margin)
    )
    return Content(tuple(tokens), alternatives, count)


def multiply(path: Path, times: int) -> Path:
    """Make each request of a store ``times`` requests, with other ids."""
    connection = sqlite3.connect(path)
    try:
        names = [name for _, name, *_ in connection.execute("PRAGMA table_info(reports)") if name != "id"]
        changed = {"request_id": "request_id || '-' || n", "span_id": "printf('%08x', n) || substr(span_id, 9)"}
        chosen = ", ".join(changed.get(name, name) for name in names)
        numbers = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT ?)"
        columns = ", ".join(names)
        copies = f"SELECT {chosen} FROM reports, numbers ORDER BY created_at_utc, n"  # noqa: S608 - text of the test
        connection.execute(f"{numbers} INSERT INTO reports ({columns}) {copies}", [times - 1])
        connection.commit()
    finally:
        connection.close()
    return path


def traffic(
    count: int, *, seed: int = 1, hours: float = 24.0, shift: float = 0.0, version: str = VERSION
) -> list[RequestReport]:
    """Requests that ended over the last hours, oldest first; ``shift`` in bits makes all of them less sure."""
    rng = np.random.default_rng(seed)
    end = time.time_ns()
    ends = np.sort(end - (rng.random(count) * hours * 3600e9).astype(np.int64))
    return [_request(rng, number, int(ended), shift, version) for number, ended in enumerate(ends)]


def _request(rng: np.random.Generator, number: int, end_ns: int, shift: float, version: str) -> RequestReport:
    kind = rng.choice(["sure", "unsure", "loop", "nan"], p=[0.78, 0.15, 0.06, 0.01])
    tokens = int(np.clip(rng.lognormal(4.2, 0.9), 2, 900))
    bits = {"sure": 0.5, "unsure": 2.4, "loop": 1.2, "nan": 1.0}[kind] * rng.lognormal(0, 0.35) + shift
    entropy = rng.gamma(0.8, bits / 0.8, tokens).clip(0, 14)
    onset = None
    if kind == "loop" and tokens > 60:
        onset = int(tokens * rng.uniform(0.2, 0.5))
        entropy[onset:] *= 0.03 + 0.2 * (np.arange(tokens - onset) % 7 == 0)
    surprisal = (entropy * rng.gamma(1.0, 0.9, tokens)).clip(0, 18)
    margin = np.exp(-0.6 * entropy) * rng.uniform(0.75, 1, tokens)
    mass = (1 - 0.05 * entropy.clip(0, 10)).clip(0, 1)
    if kind == "nan":
        entropy[tokens // 2 :] = surprisal[tokens // 2 :] = margin[tokens // 2 :] = np.nan
    score = float(np.clip(1 / (1 + np.exp(-(np.nanmean(entropy) - 1.7) * 1.5)) + rng.normal(0, 0.05), 0, 1))
    level: RiskLevel = "high" if score >= THRESHOLD else "medium" if score >= 0.4 else "low"
    length = bool(rng.random() < 0.06)
    health = Health(
        nan_detected=kind == "nan",
        repetition_loop_detected=onset is not None,
        loop_onset=onset,
        loop_period=None if onset is None else 7,
        truncated=length or onset is not None,
    )
    first_s = float(rng.lognormal(-2.2, 0.5))
    decode_s = tokens * float(rng.lognormal(-3.9, 0.2))
    model = MODELS[int(rng.choice(len(MODELS), p=[0.5, 0.35, 0.15]))]
    kept = level == "high" or health.loud_flags or number % 3 == 0
    factors = (
        f"mean entropy {np.nanmean(entropy):.3g} bits",
        f"entropy peak {np.nanmax(entropy):.3g} bits",
        f"closest margin {np.nanmin(margin):.2g}",
    )
    series = Series(
        entropy=entropy.astype(np.float32),
        surprisal=surprisal.astype(np.float32),
        margin=margin.astype(np.float32),
        topk_mass=mass.astype(np.float32),
    )
    return RequestReport(
        admitted=Admitted(
            request_id=f"chatcmpl-{rng.integers(2**60, 2**62):016x}",
            engine_id=f"{number}",
            sequence=0,
            operation="chat",
            model=model,
            arrival_ns=end_ns - int((first_s + decode_s) * 1e9),
            prompt_tokens=int(np.clip(rng.lognormal(5, 0.8), 4, 8000)),
            temperature=0.7,
            top_p=0.95,
            max_tokens=1024,
            tags=(TAGS[number % 3],) if number % 4 == 0 else (),
            engine="vllm",
            engine_version=version,
            runner="v1",
            stage="raw",
        ),
        outcome=Finished(
            reason="length" if health.truncated else "stop",
            token_ids=range(tokens),
            end_ns=end_ns,
            first_chunk_s=first_s,
            core=CoreFacts(queue_s=first_s * 0.3, prefill_s=first_s * 0.7, decode_s=decode_s),
        ),
        features=Features(
            tokens=tokens,
            entropy_mean=float(np.nanmean(entropy)),
            entropy_max=float(np.nanmax(entropy)),
            entropy_std=float(np.nanstd(entropy)),
            entropy_sum=float(np.nansum(entropy)),
            surprisal_mean=float(np.nanmean(surprisal)),
            surprisal_max=float(np.nanmax(surprisal)),
            surprisal_sum=float(np.nansum(surprisal)),
            perplexity=float(2 ** np.nanmean(surprisal)),
            margin_mean=float(np.nanmean(margin)),
            margin_min=float(np.nanmin(margin)),
            topk_mass_mean=float(mass.mean()),
            confidence_mean=float(9 - np.nanmean(entropy)),
            confidence_min=float(8 - np.nanmax(entropy) / 2),
        ),
        health=health,
        risk=Risk(score=score, level=level, basis="baseline", factors=factors if score > 0.3 else ()),
        series=series if kept else None,
        capture="on_risk",
        runner="v1",
        stage="raw",
    )
