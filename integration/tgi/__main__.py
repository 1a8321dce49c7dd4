"""Every scenario against a real shard of TGI, with corevital and without. ``make test-tgi`` runs it.

    python -m integration.tgi TGI_PYTHON TGI_SRC [PATH] [--in-process]

TGI_PYTHON is the Python of an environment that TGI's server runs in and corevital is installed in; TGI_SRC is a
checkout of TGI whose protos are compiled (`make gen-server` in its ``server`` folder). Where
intel-extension-for-pytorch is installed the flash path runs, else the others: their environments cannot be one. With
PATH only the paths whose names contain it run; with --in-process the real service is called without its socket.
Prints a row for each path, in Markdown, and exits with 1 if a check failed.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from integration.tgi.shards import environment, has_flash, launcher_lines, shard
from tests.harness import tgi_names

from corevital_otel.store.reader import StoredReport, StoreReader

HERE: Final = Path(__file__).parent
DEMO: Final = Path("otel/corevital_otel/cli/demo/model")
MOST: Final = ("one", "two", "join", "abort", "stop", "health", "trace", "error")
LIVENESS: Final = 2**64 - 1
IN_PROCESS: Final = "--in-process"
REASONS: Final = {
    "FINISH_REASON_LENGTH": "length",
    "FINISH_REASON_EOS_TOKEN": "stop",
    "FINISH_REASON_STOP_SEQUENCE": "stop",
    "abort": "abort",
    "error": "error",
}
REPORT_S: Final = 30.0


@dataclass(frozen=True)
class Case:
    """A path of TGI's through a model.

    Attributes:
        name: of the path.
        model: a folder of :mod:`integration.tgi.models`.
        scenarios: of the client's.
        tolerance: how far the mean surprisal may be from the engine's own, bits: that is bfloat16 on the flash path.
        attention: which attention.
        arguments: of the shard.
    """

    name: str
    model: str
    scenarios: tuple[str, ...]
    tolerance: float
    attention: str = "paged"
    arguments: tuple[str, ...] = ()


PADDED: Final = (
    Case("`CausalLM`, transformers' own model (GPT-2)", "gpt2", (*MOST, "grammar"), 1e-4),
    Case("`CausalLM`, TGI's model (OPT)", "opt", ("one", "two", "join", "abort"), 1e-4),
    Case("`Seq2SeqLM` (T5)", "t5", ("one", "two", "join", "abort"), 1e-4),
)
FLASH: Final = (
    Case("`FlashCausalLM` (Llama), paged attention", "llama", (*MOST, "grammar"), 0.05),
    Case("the same, `--speculate 2`", "llama", MOST, 0.05, arguments=("--speculate", "2")),
    Case("the same, prompts in parts", "llama", (*MOST, "chunks"), 0.05, "flashdecoding-ipex"),
)


class Outcome(NamedTuple):
    """What the client was given without corevital and with it, the store's rows, and our lines in the log."""

    plain: list[Any]
    measured: list[Any]
    found: list[StoredReport]
    lines: list[str]


def answers(case: Case, python: str, source: Path, socket: Path) -> list[dict[str, Any]]:
    """What the client was given, a request each, without those that are nobody's."""
    command = [python, str(HERE / "shard_client.py"), str(socket), *case.scenarios]
    env = {**os.environ, "PYTHONPATH": str(source / "server")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return list(json.loads(done.stdout.splitlines()[-1]))


def rows(store: Path, wanted: int) -> list[StoredReport]:
    """The store's rows, in the order in which the shard received their requests."""
    deadline = time.monotonic() + REPORT_S
    while time.monotonic() < deadline:
        if store.exists() and StoreReader(store).count() >= wanted:
            break
        time.sleep(0.2)
    found = StoreReader(store).list_reports(limit=1000)
    return sorted(found, key=lambda row: int(row.request_id.rpartition("-")[2]))


def differences(case: Case, plain: list[Any], measured: list[Any], found: list[StoredReport]) -> Iterator[str]:
    """What is not as it must be."""
    for before, after in zip(plain, measured, strict=True):
        if (before["tokens"], before["end"]) != (after["tokens"], after["end"]):
            yield f"request {before['request']}: other tokens with corevital than without"
    if len(found) != len(measured):
        yield f"{len(found)} rows for {len(measured)} requests"
        return
    for request, row in zip(measured, found, strict=True):
        name, has = f"request {request['request']}", row.summary
        if has.get("corevital.incomplete") or has.get("corevital.surprisal.estimated"):
            yield f"{name}: incomplete or estimated"
        if row.output_tokens != len(request["tokens"]):
            yield f"{name}: {row.output_tokens} tokens, the router was given {len(request['tokens'])}"
        if row.finish_reason != REASONS[request["end"]]:
            yield f"{name}: ended {row.finish_reason}, for the router {request['end']}"
        if absent := {"gen_ai.response.id", "gen_ai.request.stream"} & has.keys():
            yield f"{name}: {absent} cannot be known"
        apart = surprisal_apart(request, row)
        if not apart <= case.tolerance:
            yield f"{name}: surprisal {apart} bits apart from the engine's"


def surprisal_apart(request: Mapping[str, Any], row: StoredReport) -> float:
    """Between our mean surprisal and that of the engine's own log-probabilities, bits; 0 where a warper made these."""
    if not request["plain"] or not request["logprobs"]:
        return 0.0
    engine = -sum(request["logprobs"]) / len(request["logprobs"]) / math.log(2)
    return abs(float(row.summary["corevital.surprisal.mean"]) - engine)


def in_one(case: Case, python: str, source: Path, models: Path) -> Outcome:
    """The service in the client's process."""
    drafts = dict(zip(case.arguments[::2], case.arguments[1::2], strict=True)).get("--speculate", "0")
    command = [python, str(HERE / "in_process.py"), str(models / case.model), drafts, *case.scenarios]
    with tempfile.TemporaryDirectory(dir=models) as folder:
        store = Path(folder) / "store.sqlite"
        env = environment(case.attention, source, {"COREVITAL_CAPTURE": "full", "COREVITAL_DB": str(store)})
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        plain, measured = map(clients, json.loads(done.stdout.splitlines()[-1]))
        lines = [line for line in done.stderr.splitlines() if "corevital" in line]
        return Outcome(plain, measured, rows(store, len(measured)), lines)


def in_two(case: Case, python: str, source: Path, models: Path) -> Outcome:
    """A shard behind its socket, without corevital and then with it."""
    with tempfile.TemporaryDirectory(dir=models) as first, tempfile.TemporaryDirectory(dir=models) as second:
        model, env = models / case.model, environment(case.attention, source, {})
        with shard(python, model, Path(first), env, case.arguments) as socket:
            plain = answers(case, python, source, socket)
        store = Path(second) / "store.sqlite"
        env |= {"COREVITAL_ATTACH": "tgi", "COREVITAL_DB": str(store), "COREVITAL_CAPTURE": "full"}
        with shard(python, model, Path(second), env, case.arguments) as socket:
            measured = answers(case, python, source, socket)
            found = rows(store, len(clients(measured)))
        errors = (Path(second) / "stderr").read_text().splitlines()
        lines = launcher_lines(Path(second)) + [f"on stderr: {line}" for line in errors if "corevital" in line]
    return Outcome(clients(plain), clients(measured), found, lines)


def clients(given: list[Any]) -> list[Any]:
    """Without the router's own request."""
    return [each for each in given if each["request"] != LIVENESS]


def run(case: Case, outcome: Outcome) -> tuple[str, list[str]]:
    """A row of the table, and what is wrong."""
    plain, measured, found, lines = outcome
    wrong = list(differences(case, plain, measured, found))
    if not any("measures" in line for line in lines):
        wrong.append("no line in the log")
    wrong += [f"log: {line.strip()}" for line in lines if "measures" not in line]
    linked = sum("corevital.batch.traceparent" in row.summary for row in found)
    if linked != ("trace" in case.scenarios):
        wrong.append(f"{linked} rows know a batch's span")
    apart = max((surprisal_apart(a, b) for a, b in zip(measured, found, strict=False)), default=math.nan)
    tokens = sum(len(each["tokens"]) for each in measured)
    verdict = f"{len(wrong)} wrong" if wrong else "as it must be"
    return f"| {case.name} | {', '.join(case.scenarios)} | {len(found)} | {tokens} | {apart:.1e} | {verdict} |", wrong


def main() -> None:
    """Run what this environment can."""
    parts = [part for part in sys.argv[3:] if part != IN_PROCESS]
    how = in_one if IN_PROCESS in sys.argv else in_two
    python, source = sys.argv[1], Path(sys.argv[2]).resolve()
    version = subprocess.run(
        ["git", "-C", str(source), "log", "-1", "--format=%h of %cs"], capture_output=True, text=True, check=True
    ).stdout.strip()
    checked, lacking = tgi_names.look(source)
    print(f"TGI at {version}: {checked - len(lacking)} of {checked} private names are there", *lacking, sep="\n  ")
    print("\n| path | scenarios | requests | tokens | most apart, bits | |\n| --- | --- | --- | --- | --- | --- |")
    failed = bool(lacking)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, str(HERE / "models.py"), str(DEMO.resolve()), folder], check=True, capture_output=True)
        for case in FLASH if has_flash(python) else PADDED:
            if not all(part in case.name for part in parts):
                continue
            row, wrong = run(case, how(case, python, source, Path(folder)))
            print(row, *wrong, sep="\n  ", flush=True)
            failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
