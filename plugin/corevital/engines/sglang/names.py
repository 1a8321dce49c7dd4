"""Every private or unstable name of SGLang that we touch, in one place.

Where a needed name is missing that is logged once, nothing is hooked, and the server serves unobserved.
:data:`corevital.supported.CHECKED` has the versions that were tested.

=========================================================  ==============================================  ===========
name                                                       for                                             needed
=========================================================  ==============================================  ===========
``sglang.srt.plugins.hook_registry.HookRegistry``          hooks; documented                               yes
``Scheduler.__init__``                                     to reach the scheduler                          yes
``Scheduler.tp_worker.model_runner.sampling_observer``     logits and tokens; documented                   yes
``ModelRunner.supports_sampling_observer``                 whether they are shown; documented              yes
``Scheduler.recv_from_tokenizer``                          the rank that answers clients, which reports    yes
``GrammarManager.process_req_with_grammar``                the start of each sequence                      yes
``SchedulerOutputStreamer.stream_output``                  its end                                         yes
``SenderWrapper.send_output``, ``AbortReq``                its end where it never ran                      yes
``TokenizerManager._validate_one_request``                 HTTP 400 for wrong arguments                    yes
``TokenizerManager.generate_request``                      the caller's span, the client's id              yes
``TokenizerManager._send_one_request, _send_batch_request``  to send both to the scheduler                 yes
``Scheduler.send_abort_output``                            its end where it never ran, with the Rust server  no
``TokenizerManager.convert_to_span_attrs``                 token counts on SGLang's own spans              no
``SGLANG_HTTP_SERVER_APP_PATH``                            the same with several tokenizer workers         no
``Req``: ``rid``, ``origin_input_ids``, ``output_ids``,    what a span says of a sequence                  yes
``sampling_params``, ``finished_reason``, ``finished_len``
``Req``: ``stream``, ``cached_tokens``,                    more of it                                      no
``retraction_count``, ``reasoning_tokens``, ``time_stats``
=========================================================  ==============================================  ===========
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Iterable
from typing import Any, Final

from corevital.log import warn_once
from corevital.supported import CHECKED, SGLANG_OLDEST

_MANAGERS: Final = "sglang.srt.managers"
SCHEDULER: Final = f"{_MANAGERS}.scheduler"
TOKENIZER: Final = f"{_MANAGERS}.tokenizer_manager"

START: Final = f"{SCHEDULER}.Scheduler.__init__"
ADDED: Final = "sglang.srt.constrained.grammar_manager.GrammarManager.process_req_with_grammar"
ENDED: Final = f"{_MANAGERS}.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output"
ABORTED: Final = f"{_MANAGERS}.scheduler_components.output_sender.SenderWrapper.send_output"
RUST_ABORTED: Final = f"{SCHEDULER}.Scheduler.send_abort_output"

CALLED: Final = f"{TOKENIZER}.TokenizerManager.generate_request"
VALIDATED: Final = f"{TOKENIZER}.TokenizerManager._validate_one_request"
SENT: Final = f"{TOKENIZER}.TokenizerManager._send_one_request"
SENT_MANY: Final = f"{TOKENIZER}.TokenizerManager._send_batch_request"
OWN_SPANS: Final = f"{TOKENIZER}.TokenizerManager.convert_to_span_attrs"

NEEDED: Final = (START, ADDED, ENDED, ABORTED, CALLED, VALIDATED, SENT, SENT_MANY)

APP_PATH: Final = "SGLANG_HTTP_SERVER_APP_PATH"
"""SGLang's setting: the app that each of several tokenizer workers loads, which do not load plugins."""

HEALTH_CHECK: Final = "HEALTH_CHECK"
"""How the ids of SGLang's health checks begin."""

TOP_K_ALL: Final = 1 << 30
"""``top_k`` of a request that asked for none."""


@functools.cache
def version() -> str:
    """The installed version of SGLang; ``unknown`` where it was not installed as a package."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def is_too_old() -> bool:
    """Whether this SGLang has no :class:`SamplingObserver`; logged. An untested version is logged too."""
    found = _numbers(version())
    if found is not None and found < SGLANG_OLDEST:
        warn_once("version", "SGLang %s has no SamplingObserver: it serves unobserved; install %s or newer",
                  version(), shown(SGLANG_OLDEST))  # fmt: skip
        return True
    oldest, newest = CHECKED["sglang"]
    if found is None or not oldest <= found <= newest:
        warn_once("version", "SGLang %s was not tested, only %s: continuing", version(),
                  " to ".join(dict.fromkeys((shown(oldest), shown(newest)))))  # fmt: skip
    return False


def shown(numbers: tuple[int, ...]) -> str:
    """A version as text."""
    return ".".join(map(str, numbers))


def _numbers(text: str) -> tuple[int, ...] | None:
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return None if match is None else tuple(map(int, match.groups()))


def missing(targets: Iterable[str]) -> str | None:
    """The first of these methods that this SGLang lacks, as ``Class.method``. Loads their modules."""
    for target in targets:
        module, owner, name = target.rsplit(".", 2)
        try:
            found: Any = getattr(importlib.import_module(module), owner, None)
        except ImportError:
            found = None
        if not callable(getattr(found, name, None)):
            return f"{owner}.{name}"
    return None
