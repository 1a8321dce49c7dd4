"""While a monitor is open, ``generate()`` reports its calls to it: a processor alone sees no last token and no end.

Calls without a monitor's processor are passed on unchanged. ``GenerationMixin.generate`` is replaced while any
monitor is open, and put back with the last one.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, GenerationMixin, MaxLengthCriteria, MaxTimeCriteria

from corevital.engines.transformers import asked
from corevital.engines.transformers.rows import Rows
from corevital.guard import guarded

_lock = threading.Lock()
_open = 0
_original: Callable[..., Any] | None = None
_ours: Callable[..., Any] | None = None


class Follower(Protocol):
    """A monitor, as the hook knows it.

    Attributes:
        turn: held while one call is followed.
    """

    turn: threading.RLock

    def begin(self, model: Any, what: asked.Asked) -> Rows | None:
        """A call begins. None: it is not measured."""

    def end(self, rows: Rows, reason: str) -> None:
        """It has ended, for this reason where no row's own is known."""


class Processor(LogitsProcessor):  # type: ignore[misc]  # transformers has no types for mypy here
    """Looks at logits and returns the same tensor.

    Args:
        follower: whose it is.
    """

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.is_followed = False
        self.rows: Rows | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See :class:`transformers.LogitsProcessor`.

        Raises:
            RuntimeError: the monitor does not know of this call of ``generate()``.
        """
        if not self.is_followed:
            raise RuntimeError(
                "monitor.processors were used outside `with Monitor() as monitor:`, or by a generate() that is not "
                "transformers' own: call model.generate(..., logits_processor=monitor.processors) inside the block"
            )
        if self.rows is not None:
            guarded("a step of generate()")(self.rows.see_logits)(input_ids, scores)
        return scores


class _Noted(StoppingCriteria):  # type: ignore[misc]
    """A criterion of the caller, and the rows that it has just ended."""

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion
        self.ended: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        done = self._criterion(input_ids, scores, **kwargs)
        rows = done.tolist() if isinstance(done, torch.Tensor) else bool(done)
        each = rows if isinstance(rows, list) else [rows] * len(input_ids)
        self.ended = {row for row, is_done in enumerate(each) if is_done}
        return done


class _Tokens(StoppingCriteria):  # type: ignore[misc]
    """Sees each token, the last one too, and ends nothing."""

    def __init__(self, rows: Rows, noted: list[_Noted]) -> None:
        self._rows = rows
        self._noted = noted

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._see(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    @guarded("a token of generate()")
    def _see(self, input_ids: torch.Tensor) -> None:
        self._rows.see_tokens(input_ids[:, -1].tolist(), set().union(*(noted.ended for noted in self._noted)))


def install() -> None:
    """A monitor is open."""
    global _open, _original, _ours  # noqa: PLW0603 - of the process, as the class is
    with _lock:
        _open += 1
        if _original is None:
            _original = GenerationMixin.generate
            _ours = GenerationMixin.generate = _following(_original)


def remove() -> None:
    """It is closed."""
    global _open, _original  # noqa: PLW0603
    with _lock:
        _open -= 1
        if not _open and _original is not None:
            if GenerationMixin.generate is _ours:  # else somebody has wrapped it, and it passes everything on
                GenerationMixin.generate = _original
            _original = None


def _following(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        call = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        ours = next((each for each in call.get("logits_processor") or () if isinstance(each, Processor)), None)
        if ours is None:
            return original(self, *args, **kwargs)
        with ours.follower.turn:
            if ours.is_followed:  # one generate() inside another
                return original(self, *args, **kwargs)
            criteria = list(call.get("stopping_criteria") or ())
            rows = guarded("the start of generate()")(ours.follower.begin)(self, _asked(self, call, ours))
            if rows is not None:
                bound.arguments["stopping_criteria"] = _criteria(self, call, criteria, rows)
            with _followed(ours, rows):
                return original(*bound.args, **bound.kwargs)

    return generate


@contextmanager
def _followed(ours: Processor, rows: Rows | None) -> Iterator[None]:
    """While one call runs. Its rows end however it does."""
    ours.is_followed, ours.rows, reason = True, rows, "error"
    try:
        yield
        reason = "length"
    except Exception:
        raise
    except BaseException:  # interrupted
        reason = "abort"
        raise
    finally:
        ours.is_followed, ours.rows = False, None
        if rows is not None:
            guarded("the end of generate()")(ours.follower.end)(rows, reason)


def _asked(model: Any, call: Mapping[str, Any], ours: Processor) -> asked.Asked:
    """What a call asks for, by options and by criteria of the caller that replace those of options."""
    what = asked.read(model, call, next(iter(call["logits_processor"])) is ours)
    criteria = list(call.get("stopping_criteria") or ())
    ends = (asked.tokens(each.eos_token_id) for each in criteria if type(each) is EosTokenCriteria)
    times_out = any(type(each) is MaxTimeCriteria for each in criteria)
    return what._replace(ends=what.ends.union(*ends), may_time_out=what.may_time_out or times_out)


def _criteria(model: Any, call: Mapping[str, Any], given: list[Any], rows: Rows) -> Any:
    """The caller's criteria, those that end single rows noted, and ours, which sees what they ended."""
    built_in = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria)
    each = [one if type(one) in built_in else _Noted(one) for one in given]
    strings = asked.stop_strings(model, call)
    if strings is not None and call.get("tokenizer") is not None:
        from transformers import StopStringCriteria

        each.append(_Noted(StopStringCriteria(stop_strings=strings, tokenizer=call["tokenizer"])))
    return StoppingCriteriaList([*each, _Tokens(rows, [one for one in each if isinstance(one, _Noted)])])
