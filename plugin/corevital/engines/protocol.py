"""What an engine is to us: eight things, which its folder supplies in a module ``engine``.

A module can implement a protocol: ``corevital.engines.vllm.engine`` is an :class:`Engine`, and mypy checks it where
:mod:`corevital.entry` hands it over. docs/develop/adding-an-engine.md shows how to write another.

=====================  ==============================================  ==========================================
thing                  what it does                                    called in
=====================  ==============================================  ==========================================
``register``           how the engine loads us, and if we were asked   every process that loads plugins
``facts``              name, version, runner, dtype, device …          the frontend, once
``follow``             reports each sequence's start and end           the frontend
``carry, carried``     the stamp, from the request to its logits       the frontend; the worker
``observe``            gives the recorder logits and tokens            the worker
``reports``            which rank reports a request                    the worker
``request_args``       the ``corevital_*`` arguments of a request      the frontend
``STAGES``             which logits each runner shows                  both
=====================  ==============================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from corevital.frames.layout import Source
from corevital.frames.lifecycle import Observer
from corevital.frames.remote_hub import RemoteHub
from corevital.frames.stamp import Stamp

if TYPE_CHECKING:
    from corevital.engines.request_args import RequestArgs
    from corevital.steps.recorder import Recorder

Running = TypeVar("Running")
"""An engine that has started in this process, as the adapter sees it."""
Running_contra = TypeVar("Running_contra", contravariant=True)
Params_contra = TypeVar("Params_contra", contravariant=True)
"""What of a request reaches both the frontend and the worker, such as its sampling parameters."""
Worker_contra = TypeVar("Worker_contra", contravariant=True)
"""The process, or thread, that computes logits, as the adapter sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of an engine when it has started.

    Attributes:
        model: the name its model is served under.
        source: the engine's name, its model runner and the stage of its logits.
        resource: for the resource of spans and metrics. Names begin with ``engine.`` (``name``, ``version`` and
            ``runner`` are always there) or ``device.``; memory is in bytes.
        own_traces: where the engine's own tracing sends spans; None where it is off.
        tokenizer: name or directory of the model's tokenizer, empty where unknown, and its revision.
        protect: puts an ASGI application of ours behind the key of the engine's own HTTP server, given that server's
            application; returns None for any other application. None: the engine's frontend has no such server.
    """

    model: str
    source: Source
    resource: Mapping[str, str | int]
    own_traces: str | None = None
    tokenizer: tuple[str, str | None] = ("", None)
    protect: Callable[[Any, Any], Any] | None = None


def reported(found: Mapping[str, Any]) -> dict[str, str | int]:
    """Those of an engine's facts that it reports: neither None nor empty, nor of another type."""
    return {name: value for name, value in found.items() if isinstance(value, str | int) and value != ""}


class LoopCheck(Protocol):
    """Looks for a repetition loop in one sequence, as it grows."""

    @property
    def due(self) -> int:
        """Tokens from which on :meth:`looping` may find something."""

    def looping(self, tokens: Sequence[int]) -> bool:
        """Whether the sequence with all these tokens is in a loop. Those of the last call come first."""


@dataclass(frozen=True, slots=True)
class CoreHost:
    """What an engine's core needs of the telemetry half.

    Attributes:
        hub: the deployment's hub process; it is started when it is first needed.
        content: whether prompt and output text may leave the process.
        hash_key: key for a hash of the prompt's tokens; None: no hash.
        stop_on: what ends a sequence early unless its request says otherwise, some of
            :data:`corevital.supported.STOP_ON`.
        loop_check: makes what looks for a loop in one sequence; None: nothing does.
    """

    hub: RemoteHub
    content: bool
    hash_key: str | None
    stop_on: tuple[str, ...] = ()
    loop_check: Callable[[], LoopCheck] | None = None


class Host(Protocol[Running_contra]):
    """What :mod:`corevital.entry` offers an engine: the telemetry half, without knowing it."""

    def prepare(self, own_traces: str | None = None) -> bool:
        """Check settings and ``OTEL_*`` variables, before the engine starts.

        Args:
            own_traces: where the engine's own tracing sends spans.

        Returns:
            Whether to measure: False where ``COREVITAL_ENABLED=0``.

        Raises:
            SystemExit: a value is wrong; its text is the one line for the user.
        """

    def start(self, running: Running_contra, env: Mapping[str, str]) -> Callable[[], None] | None:
        """Measure an engine that has started in this process. Never raises.

        Args:
            running: the engine.
            env: the environment as it was before the engine changed it.

        Returns:
            What to call when the engine is gone; None where it cannot be followed.
        """

    def core(self, running: Running_contra) -> CoreHost | None:
        """Measure requests that no frontend of ours has stamped, in the process of an engine's core. Never raises."""


class Engine(Protocol[Running, Params_contra, Worker_contra]):
    """An engine's eight things. Only :meth:`register` may be called where the engine does not use us."""

    @property
    def STAGES(self) -> Mapping[str, str]:
        """Which logits each model runner shows: ``raw``, ``post_penalty``, ``pre_grammar``; by the runner's name."""

    def register(self, host: Host[Running]) -> None:
        """Arrange that ``host`` is called if the engine is started with us. Changes nothing else. Idempotent."""

    def facts(self, running: Running) -> Facts:
        """What is known of a running engine; what it does not report is left out."""

    def follow(self, running: Running, observer: Observer, *, content: bool, hash_key: str | None) -> bool:
        """Call ``observer.admit`` and ``observer.finish`` for each sequence.

        Each admitted sequence is finished exactly once, however it ends; its stamp is carried to the worker.

        Args:
            running: the engine.
            observer: called with its sequences.
            content: whether prompt and output text may leave the process.
            hash_key: key for a hash of the prompt's tokens; None: no hash.

        Returns:
            False, after one warning, where this version of the engine cannot be followed.
        """

    def carry(self, params: Params_contra, stamp: Stamp | None) -> None:
        """Put a stamp where :meth:`carried` finds it, in place of anything a client sent there; None removes it."""

    def carried(self, params: Params_contra) -> Stamp | None:
        """The stamp of a request, in the worker. None: it is not measured."""

    def observe(self, worker: Worker_contra, recorder: Recorder) -> object:
        """Make the adapter of a worker: the object whose methods the engine calls at each step.

        It calls ``recorder.record_logits`` with the logits, their rows, output indices and owners; and
        ``recorder.record_tokens`` with the tokens, in the same step or the next.
        """

    def reports(self, worker: Worker_contra) -> Callable[[int], bool]:
        """Whether this rank reports the request in a slot: of ranks that see the same logits exactly one does."""

    def request_args(self, params: Params_contra) -> RequestArgs:
        """The request's ``corevital_*`` arguments.

        Raises:
            ValueError: one is wrong; the text is the one line for the client.
        """
