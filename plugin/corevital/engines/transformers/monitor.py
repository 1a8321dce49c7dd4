"""The monitor: what a program opens around ``generate()``, and reads reports from."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from transformers import LogitsProcessorList

from corevital.engines.transformers import engine, hook
from corevital.engines.transformers.asked import Asked
from corevital.engines.transformers.rows import Rows
from corevital.frames.layout import Source
from corevital.frames.lifecycle import Observer
from corevital.frames.sender import FrameSender
from corevital.steps.device import can_serve, make_current, recorder_for
from corevital.steps.frame_thread import FrameThread

if TYPE_CHECKING:
    from types import TracebackType

    import torch

    from corevital.entry import Report
    from corevital.steps.recorder import Recorder

_UNCLAIMED: Final = 0.1
"""Share of a GPU's memory of which a part may hold logits between two steps."""

_LEAST_ROWS: Final = 64

_WAIT_S: Final = 20.0
"""How long reading reports waits for those of ended sequences."""


class Monitor:
    """Measures calls of ``generate()`` that get its processors. Changes no token.

    Settings are those of a server (``COREVITAL_*``, ``OTEL_*``); rows go to a store only where ``COREVITAL_DB`` names
    one. A monitor measures one call at a time; another thread's waits.

    Args:
        capture: which sequences keep their per-token series: ``full``, ``on_risk`` or ``summary``.

    Raises:
        ValueError: ``capture`` is wrong; or, where the block is entered, a setting.
    """

    def __init__(self, capture: str = "full") -> None:
        self._capture = engine.request_args({"corevital_capture": capture}).capture
        self._found: dict[str, Report] = {}
        self._order: list[str] = []
        self.turn = threading.RLock()
        self._threads: dict[tuple[str, torch.device], FrameThread] = {}
        self._recorders: dict[tuple[str, torch.device, int, int], Recorder | None] = {}
        self._observer: Observer | None = None
        self._close: Callable[[], None] | None = None
        self._is_measuring = False
        self.processors = LogitsProcessorList([hook.Processor(self)])
        """For ``generate(logits_processor=...)``. Put your own processors after these."""

    def __enter__(self) -> Monitor:
        from corevital.entry import prepare_library

        self._is_measuring = prepare_library()
        hook.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        hook.remove()
        for thread in self._threads.values():
            thread.close()
        self._threads.clear()
        self._recorders.clear()
        if self._observer is not None:
            self._observer.drain(_WAIT_S)
        self._observer = None
        if self._close is not None:
            self._close()
            self._close = None

    @property
    def reports(self) -> list[Report]:
        """A report for each sequence that has ended, in the order of calls and rows. Waits until they are here."""
        if self._observer is not None:
            self._observer.drain(_WAIT_S)
        return [self._found[name] for name in self._order if name in self._found]

    def table(self) -> list[dict[str, Any]]:
        """The reports as flat rows, for ``pandas.DataFrame(monitor.table())``."""
        return [_flat(report) for report in self.reports]

    def tokens(self) -> list[dict[str, Any]]:
        """Each token of the sequences whose series are kept, as flat rows: entropy and surprisal in bits, and more."""
        return [row for report in self.reports for row in _per_token(report)]

    def begin(self, model: Any, what: Asked) -> Rows | None:
        """See :class:`corevital.engines.transformers.hook.Follower`."""
        observer = self._started(model, what) if self._is_measuring else None
        if observer is None:
            return None
        return Rows(partial(self._recorder, what.stage), observer, model, what, self._capture)

    def end(self, rows: Rows, reason: str) -> None:
        """See :class:`corevital.engines.transformers.hook.Follower`."""
        self._order += rows.ids
        rows.end(reason)

    def _started(self, model: Any, what: Asked) -> Observer | None:
        """The hub, which the first call starts: its resource names the model's device."""
        if self._observer is None:
            from corevital.entry import start_library

            running = engine.Running(what.model, model.device.type, self._follow)
            self._close = start_library(running, self._keep)
        return self._observer

    def _follow(self, observer: Observer) -> None:
        self._observer = observer

    def _keep(self, report: Report) -> None:
        self._found[report.admitted.engine_id] = report

    def _recorder(self, stage: str, logits: torch.Tensor) -> Recorder | None:
        """The recorder of such logits; None, after one warning, where their device cannot be measured."""
        (count, vocab), device = logits.shape, logits.device
        rows = max(_LEAST_ROWS, 1 << (count - 1).bit_length())
        key = (stage, device, vocab, rows)
        if key not in self._recorders:
            self._recorders[key] = None
            if can_serve(vocab, device):
                thread = self._threads.get((stage, device))
                if thread is None:
                    sender = FrameSender(Source(engine.ENGINE, engine.RUNNER, stage))
                    thread = self._threads[stage, device] = FrameThread(sender, partial(make_current, device))
                self._recorders[key] = recorder_for(vocab, rows, _UNCLAIMED, device, thread.post, thread.lose)
        return self._recorders[key]


def _flat(report: Report) -> dict[str, Any]:
    admitted, outcome, risk = report.admitted, report.outcome, report.risk
    return {
        "request_id": admitted.request_id,
        "sequence": admitted.sequence,
        "model": admitted.model,
        "engine": admitted.engine,
        "stage": report.stage,
        "prompt_tokens": admitted.prompt_tokens,
        "output_tokens": len(outcome.token_ids),
        "finish_reason": outcome.reason,
        "seconds": (outcome.end_ns - admitted.arrival_ns) / 1e9,
        "incomplete": report.incomplete,
        "risk_score": risk.score,
        "risk_level": risk.level,
        "risk_basis": risk.basis,
        "flags": ", ".join(report.health.flags),
        **{name: value for name, value in dataclasses.asdict(report.features).items() if name != "tokens"},
    }


def _per_token(report: Report) -> list[dict[str, Any]]:
    series = report.series
    if series is None:
        return []
    columns = (series.entropy, series.surprisal, series.margin, series.topk_mass)
    return [
        {
            "request_id": report.admitted.request_id,
            "sequence": report.admitted.sequence,
            "index": index,
            "token": token,
            **dict(zip(("entropy", "surprisal", "margin", "topk_mass"), map(float, values), strict=True)),
        }
        for index, (token, *values) in enumerate(zip(outcome_tokens(report), *columns, strict=True))
    ]


def outcome_tokens(report: Report) -> list[int]:
    """The tokens that a report's series is about."""
    return list(report.outcome.token_ids)[: 0 if report.series is None else len(report.series)]
