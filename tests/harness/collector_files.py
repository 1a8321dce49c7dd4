"""The Collector's files as it merges them, and a stand-in for the two contrib processors that decide what is kept.

The core Collector that tests can build has no ``tail_sampling`` and no ``filter``. The stand-in evaluates the policies
and conditions of our files on spans, by the documentation of both: it shows what our configuration means, not that
the processors do it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from tests.harness.collector import Span

FOLDER = Path(__file__).resolve().parents[2] / "dashboards/collector"
Config = dict[str, Any]

STATUS_ERROR = 2
"""``STATUS_CODE_ERROR`` of OTLP."""

_OTTL = (
    (r'span\.attributes\["([\w.]+)"\]', r'attributes.get("\1")'),
    (r"span\.status\.code", "status"),
    (r"\bSTATUS_CODE_ERROR\b", str(STATUS_ERROR)),
    (r"\bnil\b", "None"),
    (r"\btrue\b", "True"),
    (r"\bfalse\b", "False"),
)
_PLAIN = re.compile(
    r'(attributes\.get\("[\w.]+"\)|status|None|True|False|not|and|or|[()]|[=!]=|[<>]=?|"\w*"|[\d.]+|\s+)+'
)


def load(name: str) -> Config:
    """A file of ``dashboards/collector``."""
    return yaml.safe_load((FOLDER / name).read_text())


def merged(base: Config, over: Config) -> Config:
    """As the Collector merges several ``--config``: maps key by key, anything else replaced."""
    found = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def stack(traces_to: str, *others: str) -> Config:
    """The stack's configuration for a value of ``TRACES_TO``, with other files merged over it."""
    config = load("collector.yaml")
    for name in (f"to-{traces_to}.yaml", *others):
        config = merged(config, load(name))
    return config


def holds(condition: str, span: Span) -> bool:
    """Whether a condition in OTTL, of the part of it that our files use, holds for a span.

    Raises:
        ValueError: it uses more of OTTL.
    """
    text = f" {condition} "
    text = re.sub(r'(?<!span\.)attributes\["', 'span.attributes["', text)  # a policy names no context
    for pattern, python in _OTTL:
        text = re.sub(pattern, python, text)
    if not _PLAIN.fullmatch(text):
        raise ValueError(f"not in the stand-in's part of OTTL: {condition}")
    return bool(eval(text.strip().replace("\n", " "), {"attributes": span.attributes, "status": span.status}))  # noqa: S307 - text of this repository


def matches(policy: Config, trace: Iterable[Span], keep_percent: float) -> bool:
    """Whether a policy of ``tail_sampling`` keeps a trace."""
    kind, spans = policy["type"], list(trace)
    settings = policy[kind]
    if kind == "boolean_attribute":
        return any(span.attributes.get(settings["key"]) is settings["value"] for span in spans)
    if kind == "string_attribute":
        return any(span.attributes.get(settings["key"]) in settings["values"] for span in spans)
    if kind == "ottl_condition":
        return any(holds(condition, span) for condition in settings["span"] for span in spans)
    if kind == "status_code":
        assert settings["status_codes"] == ["ERROR"]
        return any(span.status == STATUS_ERROR for span in spans)
    if kind == "latency":
        return (
            max(span.end_ns for span in spans) - min(span.start_ns for span in spans) >= 1e6 * settings["threshold_ms"]
        )
    assert kind == "probabilistic", kind
    return int(spans[0].trace_id[-8:], 16) / 2**32 < keep_percent / 100  # contrib hashes the id; any fair draw will do


class Sampler:
    """Stands in for ``tail_sampling``: decides on a trace so long after its first span, and late spans follow.

    Args:
        settings: the processor's.
        keep_percent: ``KEEP_PERCENT``.
    """

    def __init__(self, settings: Config, keep_percent: float) -> None:
        self._policies = settings["policies"]
        self._wait_s = float(settings["decision_wait"].removesuffix("s"))
        self._keep_percent = keep_percent

    def kept(self, arrivals: Iterable[tuple[float, Span]]) -> Iterator[Span]:
        """Those of the spans, with their time of arrival in seconds, that it passes on."""
        traces: dict[str, list[tuple[float, Span]]] = {}
        for at, span in sorted(arrivals, key=lambda arrival: arrival[0]):
            traces.setdefault(span.trace_id, []).append((at, span))
        for spans in traces.values():
            decided_at = spans[0][0] + self._wait_s
            seen = [span for at, span in spans if at <= decided_at]
            if any(matches(policy, seen, self._keep_percent) for policy in self._policies):
                yield from (span for _, span in spans)


def sent(config: Config, arrivals: list[tuple[float, Span]], keep_percent: float = 0.0) -> dict[str, list[Span]]:
    """What each exporter of traces gets of spans, with their time of arrival in seconds."""
    found: dict[str, list[Span]] = {}
    for name, pipeline in config["service"]["pipelines"].items():
        if not name.startswith("traces/") or pipeline["receivers"] != ["forward"]:
            continue
        spans = [span for _, span in arrivals]
        for processor in pipeline.get("processors", ()):
            if processor == "tail_sampling":
                spans = list(Sampler(config["processors"][processor], keep_percent).kept(arrivals))
            elif processor.startswith("filter/"):
                dropping = config["processors"][processor]["trace_conditions"]
                spans = [span for span in spans if not any(holds(condition, span) for condition in dropping)]
        for exporter in pipeline["exporters"]:
            if exporter not in config["connectors"]:
                found.setdefault(exporter, []).extend(spans)
    return found
