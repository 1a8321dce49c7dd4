"""Sequences with known distributions, and an assembler with a clock that stands still."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from opentelemetry.trace import SpanContext

from corevital.frames.layout import REJECTED, ROW, SAMPLED, Frame, Source, decode, encode
from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel.counters import Counters
from corevital_otel.measure.assembler import Assembler
from corevital_otel.report import Admission, Features, RequestReport
from corevital_otel.risk import PriorRisk

VOCAB = 40
KEY = 7


@dataclass
class Output:
    """Logits and tokens of one output; `extra` steps more than the client got."""

    n: int
    seed: int = 0
    extra: int = 0
    key: int = KEY
    tokens: np.ndarray = field(init=False)
    logp: np.ndarray = field(init=False)  # [n + extra, VOCAB]

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        logits = rng.normal(size=(self.n + self.extra, VOCAB)) * rng.uniform(0.5, 6, size=(self.n + self.extra, 1))
        self.logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self.tokens = rng.integers(0, VOCAB, self.n + self.extra)

    def rows(self, indices: Iterable[int]) -> np.ndarray:
        at = list(indices)
        table = np.zeros(len(at), ROW)
        for row, i in zip(table, at, strict=True):
            order = np.argsort(-self.logp[i], kind="stable")[:20]
            p = np.exp(self.logp[i][order])
            row["key"], row["index"], row["vocab"] = self.key, i, VOCAB
            row["entropy"] = -(np.exp(self.logp[i]) * self.logp[i]).sum()
            row["margin"], row["topk_mass"] = p[0] - p[1], p[:10].sum()
            row["topk_ids"], row["topk_logprobs"] = order, self.logp[i][order]
        return table

    def sampled(self, indices: Iterable[int]) -> np.ndarray:
        at = list(indices)
        table = np.zeros(len(at), SAMPLED)
        table["key"], table["index"], table["token"] = self.key, at, self.tokens[at]
        table["logprob"] = self.logp[at, self.tokens[at]]
        return table

    def rejected(self, indices: Iterable[int]) -> np.ndarray:
        """What says that the rows sent for these indices were of drafts that came to nothing."""
        table = self.sampled(indices)
        table["token"], table["logprob"] = REJECTED, np.nan
        return table

    def steps(self) -> list[Frame]:
        """As an engine sends them: a step's frame holds its row, and the token sampled in the step before."""
        count = self.n + self.extra
        return [frame(self.rows([i]), self.sampled([i - 1] if i else [])) for i in range(count)]

    def finished(self, reason: str = "stop") -> Finished:
        return Finished(reason=reason, token_ids=self.tokens[: self.n].tolist(), end_ns=1)

    def repetition_share(self) -> float:
        said = self.tokens[: self.n].tolist()
        seen: dict[tuple[int, ...], int] = {}
        repeated = []
        for i in range(self.n):
            gram = tuple(said[i - 3 : i + 1])
            repeated.append(i >= 3 and i - seen.get(gram, -1000) <= 512)
            if i >= 3:
                seen[gram] = i
        width = min(self.n, 128)
        return max(float(np.mean(repeated[i : i + width])) for i in range(self.n - width + 1))

    def features(self, observed: Iterable[int] | None = None, forced: Iterable[int] = ()) -> Features:
        """What the definitions say, written without regard to the implementation; `forced` ones are not `observed`."""
        at = list(range(self.n)) if observed is None else sorted(observed)
        zero = dict.fromkeys(forced, 0.0)
        if not at:
            return Features(repetition_share=self.repetition_share() if self.n else None)  # the tokens are known
        logp = self.logp[at]
        entropy = -(np.exp(logp) * logp).sum(axis=1) / np.log(2)
        surprisal = -logp[range(len(at)), self.tokens[at]] / np.log(2)
        top = -np.sort(-logp, axis=1)
        p = np.exp(top)
        confidence = {i: -row[:20].mean() for i, row in zip(at, top, strict=True)}
        ends = range(15, max([at[-1], *zero]) + 1)
        groups = [[confidence[j] for j in range(i - 15, i + 1) if j in confidence] for i in ends]
        mean = float(np.mean(list(confidence.values())))
        margin = p[:, 0] - p[:, 1]
        tokens = {i: (entropy[k], surprisal[k], margin[k], confidence[i]) for k, i in enumerate(at)}
        early = np.mean([tokens[i] for i in at if i < 16], axis=0).tolist() if at[0] < 16 else [None] * 4
        last = ends.stop - 1
        late = np.mean([tokens[i] for i in at if i > last - 16], axis=0).tolist()
        bits = {**zero, **{i: value[0] for i, value in tokens.items()}}
        windows = [[bits[j] for j in range(i - 15, i + 1) if j in bits] for i in ends]
        levels = [float(np.mean(window)) for window in windows if len(window) >= 12]
        one_group = sum(bits.values()) / len(bits) if len(bits) < 16 else None
        run, longest = 0, 0
        for value in entropy:
            run = run + 1 if value > 4.0 else max(run - 2, 0)
            longest = max(longest, run)
        likeliest = {i: int(row.argmax()) for i, row in zip(at, logp, strict=True)}
        still, stillest = 0, 0
        for i in at:
            same = likeliest.get(i - 1) == likeliest[i] and abs(tokens[i - 1][0] - tokens[i][0]) <= 0.01
            still = still + 1 if same else 0
            stillest = max(stillest, still)
        spans = [[tokens[j][0] for j in range(i - 63, i + 1) if j in tokens] for i in range(63, at[-1] + 1)]
        return Features(
            tokens=len(at),
            entropy_mean=entropy.mean(),
            entropy_max=entropy.max(),
            entropy_std=entropy.std(),
            entropy_slope=float(np.polyfit(at, entropy, 1)[0]) if len(at) > 1 else None,
            entropy_sum=entropy.sum(),
            entropy_early=early[0],
            entropy_change=None if early[0] is None else late[0] - early[0],
            entropy_group_max=max(levels, default=one_group),
            entropy_rebound=max((level - min(levels[: i + 1]) for i, level in enumerate(levels)), default=None),
            entropy_bursts=sum(i - 1 in tokens and tokens[i][0] - tokens[i - 1][0] >= 2.0 for i in at),
            surprisal_mean=surprisal.mean(),
            surprisal_max=surprisal.max(),
            surprisal_sum=surprisal.sum(),
            surprisal_std=surprisal.std(),
            surprisal_early=early[1],
            perplexity=2 ** surprisal.mean(),
            margin_mean=margin.mean(),
            margin_min=margin.min(),
            margin_early=early[2],
            margin_close_share=(margin < 0.1).mean(),
            topk_mass_mean=p[:, :10].sum(axis=1).mean(),
            confidence_mean=mean,
            confidence_min=min(
                (float(np.mean(group)) for group in groups if len(group) >= 12),
                default=mean if len(bits) < 16 and 4 * len(at) >= 3 * len(bits) else None,
            ),
            confidence_early=early[3],
            confidence_tail=late[3],
            confidence_change=None if early[3] is None else late[3] - early[3],
            high_entropy_run=longest,
            high_entropy_mean=max((float(np.mean(span)) for span in spans if len(span) >= 48), default=None),
            repetition_share=self.repetition_share(),
            frozen_run=stillest,
            high_entropy_steps=int((entropy > 4.0).sum()),
        )


SOURCE = Source("vllm", "v1", "raw")


def frame(rows: np.ndarray | None = None, sampled: np.ndarray | None = None, source: Source = SOURCE) -> Frame:
    """A frame as it arrives: read-only, decoded from bytes."""
    rows = np.empty(0, ROW) if rows is None else rows
    sampled = np.empty(0, SAMPLED) if sampled is None else sampled
    return decode(encode(Frame(rows=rows, sampled=sampled, source=source)))


class Scene:
    """An assembler, its reports and its losses."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.reports: list[RequestReport] = []
        self.counters = Counters()
        waits = {"wait_s": 2.0, "surprisal_wait_s": 0.25, "facts_wait_s": 0.25}
        options = {"risk": PriorRisk(0.7), "capture": "full", **waits, **options}
        self.assembler = Assembler(self.reports.append, self.counters, clock=lambda: self.now, **options)

    def admit(self, key: int = KEY, capture: str | None = None, role: str | None = None) -> None:
        admitted = Admitted(
            request_id=f"r{key}",
            engine_id=f"e{key}",
            sequence=0,
            operation="chat",
            model="m",
            arrival_ns=0,
            prompt_tokens=3,
            capture=capture,
            role=role,
        )
        self.assembler.admit(key, admitted, Admission(SpanContext(key + 1, key + 1, is_remote=True)))

    def turn(self) -> None:
        """The end of the caller's turn: what is complete is reported."""
        self.assembler.tick(self.now)

    def finish(self, key: int, outcome: Finished) -> None:
        """A sequence's end, and that of the caller's turn."""
        self.assembler.finish(key, outcome)
        self.turn()

    def play(self, output: Output, reason: str = "stop") -> RequestReport:
        """Admission, all frames, the end."""
        self.admit(output.key)
        for step in output.steps():
            self.assembler.frame(step)
        self.assembler.finish(output.key, output.finished(reason))
        self.run_out()
        return self.reports[-1]

    def run_out(self) -> None:
        self.now += 10.0
        assert self.assembler.tick(self.now) is None

    def lost(self, **labels: str) -> int:
        return self.counters.get("corevital.telemetry.dropped", **labels)


def check(found: Features, wanted: Features) -> None:
    """Equal up to float32 rows."""
    for name in Features.__dataclass_fields__:
        expected = getattr(wanted, name)
        assert getattr(found, name) == (None if expected is None else pytest.approx(expected, rel=2e-4, abs=2e-5)), name


class Kit:
    """What the tests of this folder build on."""

    Output = Output
    Scene = Scene
    frame = staticmethod(frame)
    check = staticmethod(check)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit
