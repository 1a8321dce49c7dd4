"""Runs each statement of docs/operate/clickhouse.md in ClickHouse (chdb) on spans that were really exported.

    python -m integration.clickhouse [--spans 4000]

The spans are made and sent by our exporter over OTLP/HTTP; :mod:`integration.clickhouse.rows` stands in for the
Collector's exporter. Each result is compared with what Python counts on the same spans. Exit status 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import chdb
from chdb.session import Session
from integration.bench.machine import processor, versions
from integration.clickhouse.rows import TABLE, row
from integration.clickhouse.spans import export
from tests.harness.collector import Span

PAGE = Path(__file__).parents[2] / "docs/operate/clickhouse.md"
Rows = list[list[Any]]


def statements() -> dict[str, str]:
    """The page's SQL, by heading."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    found = {
        heading: re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {heading: sql for heading, texts in found.items() for sql in texts}


def is_high(span: Span) -> bool:
    return span.attributes["corevital.risk.level"] == "high"


def loops(span: Span) -> bool:
    return span.attributes["corevital.health.repetition_loop_detected"]


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def expected(spans: list[Span], now: float) -> dict[str, Rows]:
    """What each statement returns, counted here. Times and ids of rows that ties could order otherwise are left out."""
    by_hour, by_server, by_model, halves = (defaultdict(list) for _ in range(4))
    tenants: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        model = span.attributes["gen_ai.request.model"]
        by_model[model].append(span)
        by_hour[span.start_ns // 10**9 // 3600 * 3600, model].append(span)
        by_server[model, span.resource["service.instance.id"]].append(span)
        if span.start_ns > (now - 6 * 3600) * 1e9:
            halves[model, int(span.start_ns >= (now - 3 * 3600) * 1e9)].append(span)
        for tag in span.attributes.get("corevital.tags", ()):
            tenants[tag].append(span)
    model_share = {model: share([loops(span) for span in each]) for model, each in by_model.items()}
    risky = sorted(
        (span for span in spans if is_high(span)), key=lambda s: (-s.attributes["corevital.risk_score"], s.span_id)
    )
    peaks = [
        (value, series["offset"] + at)
        for span in spans
        if span.attributes["gen_ai.response.id"] == "chatcmpl-0"
        for series in span.series
        for at, value in enumerate(series["entropy"])
    ]

    def mean(each: list[Span], name: str) -> float:
        return statistics.fmean(span.attributes[name] for span in each)

    servers = [
        [
            model,
            server,
            len(each),
            share([loops(s) for s in each]),
            share([loops(s) for s in each]) / model_share[model],
        ]
        for (model, server), each in by_server.items()
    ]
    return {
        "Each model by hour": [
            [model, len(each), share([is_high(s) for s in each]), share([loops(s) for s in each])]
            for (_, model), each in sorted(by_hour.items())
        ],
        "The riskiest requests": [
            [span.attributes["gen_ai.response.id"], span.attributes["corevital.risk_score"], span.trace_id]
            for span in risky[:10]
        ],
        "One server among its peers": sorted(servers, key=lambda r: (r[0], -r[3], r[1])),
        "Latency of the first chunk": [
            [model, [exact(each, level) for level in (0.5, 0.95, 0.99)], len(each)]
            for model, each in sorted(by_model.items())
        ],
        "By tenant": sorted(
            (
                [
                    tenant,
                    len(each),
                    sum(s.attributes["gen_ai.usage.output_tokens"] for s in each),
                    sum(map(is_high, each)),
                ]
                for tenant, each in tenants.items()
            ),
            key=lambda r: (-r[2], r[0]),
        ),
        "Before and after a deploy": [
            [
                *key,
                len(each),
                mean(each, "corevital.entropy.mean"),
                mean(each, "gen_ai.usage.output_tokens"),
                share([is_high(s) for s in each]),
            ]
            for key, each in sorted(halves.items())
        ],
        "The most uncertain token of a request": [
            [token, value] for value, token in sorted(peaks, key=lambda p: (-p[0], p[1]))[:1]
        ],
        "Each span once": [[len(spans) + 1, len(spans)]],
    }


def exact(spans: list[Span], level: float) -> float:
    """ClickHouse's ``quantileExact``: an element, of the index that is level times the count."""
    values = sorted(span.attributes["gen_ai.response.time_to_first_chunk"] for span in spans)
    return values[min(int(level * len(values)), len(values) - 1)]


def same(one: Any, other: Any) -> bool:
    """Equal, numbers to seven digits."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-7, abs_tol=1e-12)
    return one == other


LEFT_OUT = {"Each model by hour": {"hour"}, "The riskiest requests": {"started", "server"}}
"""Columns that are not compared: those by which Python's rows are sorted already."""


def check(session: Session, heading: str, sql: str, wanted: Rows | None) -> bool:
    """Run a statement, print how it began, and compare."""
    if wanted is None:  # it returns nothing
        session.query(sql)
        print(f"{heading}: done")
        return True
    answer = json.loads(str(session.query(sql, "JSON")))
    names = [column["name"] for column in answer["meta"] if column["name"] not in LEFT_OUT.get(heading, ())]
    got = [[each[name] for name in names] for each in answer["data"]]
    right = bool(got) and same(got, wanted)
    verdict = "as counted" if right else "NOT AS COUNTED"
    print(f"{heading}: {len(got)} rows, {verdict}; first: {json.dumps(got[:1])[1:-1][:110]}")
    if not right:
        print(f"  wanted {json.dumps(wanted[:3])}\n  got    {json.dumps(got[:3])}")
    return right


def main() -> int:
    """Export, insert, run and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spans", type=int, default=4000)
    given = parser.parse_args()
    os.environ["TZ"] = "UTC"
    time.tzset()
    spans = export(given.spans)
    with Session() as session:
        session.query("CREATE DATABASE otel")
        session.query(TABLE)
        for rows in (spans, spans[:1]):  # one arrives twice
            lines = "\n".join(json.dumps(row(span)) for span in rows)
            session.query(f"INSERT INTO otel.otel_traces FORMAT JSONEachRow\n{lines}")
        wanted = expected(spans + spans[:1], time.time())
        wanted["Each span once"] = [[len(spans) + 1, len(spans)]]
        results = [check(session, heading, sql, wanted.get(heading)) for heading, sql in statements().items()]
        session.query("OPTIMIZE TABLE otel.otel_traces FINAL")
        size = "SELECT sum(bytes_on_disk) / sum(rows) FROM system.parts WHERE table = 'otel_traces' AND active"
        per_span = float(str(session.query(size, "CSV")))
    kinds = Counter(bool(span.series) for span in spans)
    print(f"{per_span:.0f} bytes a span on disk: {kinds[False]} spans without a series, {kinds[True]} with")
    print(f"{processor()}; {versions('chdb', 'opentelemetry-sdk')}, ClickHouse {chdb.engine_version}")
    return 0 if all(results) and set(wanted) <= set(statements()) else 1


if __name__ == "__main__":
    sys.exit(main())
