"""Stands where frames would leave an adapter, and takes in what the telemetry half would."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from corevital.frames.layout import REJECTED
from corevital.steps.packing import deliver
from corevital.steps.step import Part, SampledStep, Step

SERVER = "0" * 32


@dataclass
class Sink:
    """What was emitted, by (key, index); a later record replaces an earlier one, a rejection takes it back."""

    rows: dict[tuple[int, int], dict[str, float]] = field(default_factory=dict)
    tokens: dict[tuple[int, int], tuple[int, float]] = field(default_factory=dict)
    sent: dict[tuple[int, int], float] = field(default_factory=dict)  # log-probabilities that came with the tokens
    rejected: int = 0
    _tables: dict[tuple[int, int], dict[int, float]] = field(default_factory=dict)

    def post(self, phase: Step | SampledStep) -> None:
        part = Part.of(phase)
        deliver([part], part.step.owners, self)

    def drop(self, server: str, records: int) -> None:
        raise AssertionError("nothing is dropped here")

    def close(self) -> None:
        pass

    def send(self, server: str, rows: Any = (), sampled: Any = ()) -> None:
        assert server == SERVER
        for row in rows:
            values = {name: float(row[name]) for name in ("entropy", "max_logit", "logsumexp")}
            at = int(row["key"]), int(row["index"])
            self.rows[at] = values
            self._tables[at] = dict(zip(row["topk_ids"].tolist(), row["topk_logprobs"].tolist(), strict=True))
        for record in sampled:
            at = int(record["key"]), int(record["index"])
            if record["token"] == REJECTED:
                self.rejected += 1
                del self.rows[at]
            else:
                token, logprob = int(record["token"]), float(record["logprob"])
                self.sent[at] = logprob
                self.tokens[at] = token, self._tables[at].get(token, logprob)
