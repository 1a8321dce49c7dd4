"""Faults made on purpose: does the plugin flag each of them, and nothing else?

Loops are looked for in two ways: in texts by the detector alone, for every period, and through real vLLM, dictated
token by token to a model without knowledge, for some.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from integration.bench.engine import write_model
from integration.bench.risk import texts
from integration.bench.risk.serve import serve

from corevital_otel.measure.loops import LoopDetector

A_PERIOD = 4
"""Loops of each kind and period."""
_SERVED_PERIODS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 128)
_SERVED_CLEAN = 33
_VOCABULARY = 32768
_POISONED = 60


@dataclass(frozen=True, slots=True)
class Loops:
    """Of texts of one kind.

    Attributes:
        n: texts.
        running, ended: share in which a loop was found while the text went on, and by its end; of ``changing`` ones a
            template.
        period_right: of those found, the share whose period was right.
        delay: median of the tokens from the loop's second copy to when it was found.
    """

    n: int
    running: float
    ended: float
    period_right: float | None = None
    delay: float | None = None


def _detect(tokens: texts.Tokens, kind: str = "exact") -> tuple[int | None, tuple[int, int] | None]:
    """After how many tokens a loop was found while running, and its period and onset at the end."""
    detector = LoopDetector()
    detector.update(tokens)
    found = detector.found
    counts = found is not None and (found.loop or kind == "changing")
    return (found.fired_at, (found.period, found.onset)) if found and counts else (None, None)


def loops(seed: int) -> dict[str, Loops]:
    """What the detector finds in loops of every kind and period, and in clean text."""
    rng = random.Random(f"loops {seed}")
    clean = texts.clean()
    found = [_detect(text) for text in clean]
    results = {"clean": Loops(len(clean), _share([a is not None for a, _ in found]), _share([b for _, b in found]))}
    for kind in texts.KINDS:
        periods = [period for period in texts.PERIODS for _ in range(A_PERIOD)]
        found = [_detect(texts.loop(rng.choice(clean), period, kind, rng), kind) for period in periods]
        hits = [(period, at, end) for period, (at, end) in zip(periods, found, strict=True) if end]
        results[kind] = Loops(
            len(periods),
            _share([at is not None for at, _ in found]),
            len(hits) / len(periods),
            _share([end[0] == period for period, _, end in hits]),
            statistics.median(at - texts.LEAD - period for period, at, _ in hits if at is not None),
        )
    return results


def served_loops(seed: int) -> dict[str, tuple[int, int]]:
    """The same through vLLM: of each kind how many texts were flagged, and how many there were."""
    rng = random.Random(f"served loops {seed}")
    clean = texts.clean()
    said = [("clean", rng.choice(clean)) for _ in range(_SERVED_CLEAN)]
    said += [(kind, texts.loop(rng.choice(clean), p, kind, rng)) for kind in texts.KINDS for p in _SERVED_PERIODS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, 64, 1, _VOCABULARY)
        requests = [
            ([1], {"temperature": 0.0, "max_tokens": len(t), "ignore_eos": True, "detokenize": False,
                   "extra_args": {"dictated": t.tolist()}})
            for _, t in said
        ]  # fmt: skip
        processors = ("corevital", "integration.bench.risk.dictate:Dictated")
        answers = serve(folder, folder, requests, processors, load_format="dummy", skip_tokenizer_init=True)
    found: dict[str, list[bool]] = {}
    for (kind, text), (tokens, report) in zip(said, answers, strict=True):
        if tokens != text.tolist():
            raise RuntimeError("vLLM did not say what was dictated")
        flag = "template_detected" if kind == "changing" else "repetition_loop_detected"
        found.setdefault(kind, []).append(flag in report.flags)
    return {kind: (sum(flagged), len(flagged)) for kind, flagged in found.items()}


def nan(model: Path) -> dict[str, tuple[int, int]]:
    """How many requests were flagged for a NaN: of those with one in the logits of their third token, and of others."""
    poisons: tuple[dict[str, str], ...] = ({"poison": "nan"}, {})
    requests = [
        ("Add up 12, 3, 4.\n", {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, "extra_args": poisons[i % 2]})
        for i in range(2 * _POISONED)
    ]
    with tempfile.TemporaryDirectory() as name:
        answers = serve(Path(name), model, requests, ("integration.harness.faults:PoisonedLogits", "corevital"))
    flagged = ["nan_detected" in report.flags for _, report in answers]
    return {"injected": (sum(flagged[::2]), _POISONED), "clean": (sum(flagged[1::2]), _POISONED)}


def _share(found: list[object]) -> float:
    return sum(map(bool, found)) / len(found)
