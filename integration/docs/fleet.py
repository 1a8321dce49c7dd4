"""A fleet's bad hour, for the pictures of docs/operate/dashboards.md: ``python -m integration.docs.fleet OUT``.

Twelve **stand-ins for servers** show the metrics that ours have, with numbers that are made up. What watches them is
real: a Prometheus with our rules, sixty times as fast (see :mod:`integration.harness.alerting`). So the alerts, the
states and every number in the panels are Prometheus' answers to the dashboards' own queries. Needs no engine; three
minutes.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from integration.docs.recording import dashboards, record
from integration.harness.alerting import RULES, SPEED, shortened_rules
from integration.harness.prometheus import Prometheus, prometheus
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from corevital_otel.conventions import CONDITIONS
from corevital_otel.metrics.instruments import FINISH_REASONS, INSTRUMENTS

LARGE, SMALL = "llama-3.3-70b", "qwen3-8b"
SECONDS = 178
DEPLOY = (45, 69)
"""Seconds in which the small model's servers get a new version, one after the other."""
LOOPS = 118
"""From this second on, one server of the large model answers loops."""
FULL = 138
"""From here on, another one's KV cache is full."""
VARIABLES = {"cluster": ".*", "model": ".*", "instance": ".*", "__rate_interval": "8s", "compare": "60s"}
SHOWN = {"compare": "1h"}
"""At the ordinary speed."""


class StandIn:
    """One server's page.

    Args:
        number: of the server in the fleet.
        model: the name that it serves.
        rate: requests a second.
    """

    def __init__(self, number: int, model: str, rate: float) -> None:
        self.number, self.model, self.rate = number, model, rate
        self.answers = True
        self._random = random.Random(number)
        self.restart("0.2.0", "0.32.0")

    def restart(self, version: str, engine: str) -> None:
        """Begin with all counters at zero."""
        self._registry = CollectorRegistry()
        self._ours = {name: self._made(instrument) for name, instrument in INSTRUMENTS.items()}
        labels = ("model_name",)
        self._waiting = Gauge("vllm:num_requests_waiting", "-", labels, registry=self._registry)
        self._running = Gauge("vllm:num_requests_running", "-", labels, registry=self._registry)
        self._cache = Gauge("vllm:kv_cache_usage_perc", "-", labels, registry=self._registry)
        self._engine_preemptions = Counter("vllm:num_preemptions", "-", labels, registry=self._registry)
        self._prompt = Counter("vllm:prompt_tokens", "-", labels, registry=self._registry)
        self._generation = Counter("vllm:generation_tokens", "-", labels, registry=self._registry)
        self._http = Counter("http_requests", "-", ("handler", "status"), registry=self._registry)
        for reason in FINISH_REASONS:
            for level in ("low", "medium", "high", "unknown"):
                self._ours["corevital.requests"].labels(self.model, reason, level).inc(0)
        for flag in CONDITIONS:
            self._ours["corevital.health.warnings"].labels(self.model, flag).inc(0)
        self._engine_preemptions.labels(self.model).inc(0)
        self._ours["corevital.preemptions"].labels(self.model).inc(0)
        for flag in ("nan_detected", "inf_detected", "repetition_loop_detected"):
            self._ours["corevital.requests.faulty"].labels(self.model, flag).inc(0)
            self._ours["corevital.health.flags"].labels(self.model, flag).inc(0)
        self._ours["corevital.build_info"].labels(version, "vllm", engine).set(1)
        self._ours["corevital.telemetry.faults"].inc(0)
        self._debt = 0.0
        self.show()

    def _made(self, instrument: Any) -> Any:
        labels = [label.replace(".", "_") for label in instrument.labels]
        if instrument.kind == "histogram":
            return Histogram(instrument.prometheus, "-", labels, buckets=instrument.buckets, registry=self._registry)
        return {"counter": Counter, "gauge": Gauge}[instrument.kind](
            instrument.prometheus, "-", labels, registry=self._registry
        )

    def tick(self, seconds: float, at: float) -> None:
        """Let time pass."""
        looping, full = self.number == 7 and at > LOOPS, self.number == 3 and at > FULL
        self._debt += seconds * self.rate
        for _ in range(int(self._debt)):
            self._request(loops=looping and self._random.random() < 0.45, slow=full)
        self._debt %= 1.0
        running = self.rate * 1.5 + self._random.uniform(-2, 2) + (9 if full else 0)
        self._running.labels(self.model).set(round(running))
        self._waiting.labels(self.model).set(round(self._random.uniform(14, 30)) if full else 0)
        self._cache.labels(self.model).set(
            self._random.uniform(0.96, 1.0) if full else min(0.9, 0.3 + 0.02 * running + 0.01 * self.number)
        )
        self._ours["corevital.sequences.running"].labels(self.model).set(round(running))
        self._ours["corevital.sequences.looping"].labels(self.model).set(round(running * 0.4) if looping else 0)
        self._ours["corevital.sequences.alarmed"].labels(self.model).set(0)
        self._ours["corevital.telemetry.cpu_time"].inc(seconds * 0.004 * self.rate)
        if full and self._random.random() < 0.5:
            self._engine_preemptions.labels(self.model).inc()
            self._ours["corevital.preemptions"].labels(self.model).inc()

    def _request(self, loops: bool, slow: bool) -> None:
        draw, model = self._random, self.model
        tokens = 512 if loops else int(draw.gammavariate(3, 60)) + 1
        score = min(0.99, draw.betavariate(1.2, 9) + (0.15 if loops else 0))
        level = "high" if score >= 0.7 else "medium" if score >= 0.4 else "low"
        reason = "length" if loops or draw.random() < 0.03 else "stop"
        ours = self._ours
        ours["corevital.requests"].labels(model, reason, level).inc()
        if loops:
            ours["corevital.requests.faulty"].labels(model, "repetition_loop_detected").inc()
            ours["corevital.health.flags"].labels(model, "repetition_loop_detected").inc()
        ours["corevital.risk_score"].labels(model, "prior").observe(score)
        ours["corevital.tokens"].labels(model).inc(tokens)
        entropy = 0.1 if loops else draw.gammavariate(8, 0.11)
        ours["corevital.entropy"].labels(model).observe(entropy)
        ours["corevital.surprisal"].labels(model).observe(entropy * 0.9)
        first = draw.gammavariate(2, 0.12) + (draw.uniform(1, 4) if slow else 0)
        ours["gen_ai.server.time_to_first_token"].labels(model).observe(first)
        each = draw.gammavariate(9, 0.002)
        ours["gen_ai.server.time_per_output_token"].labels(model).observe(each)
        ours["gen_ai.server.request.duration"].labels(model).observe(first + tokens * each)
        ours["corevital.telemetry.lag"].observe(0.003)
        self._prompt.labels(model).inc(int(draw.gammavariate(2, 300)))
        self._generation.labels(model).inc(tokens)
        self._http.labels("/v1/chat/completions", "2xx").inc()

    def show(self) -> None:
        """Write the page: a scrape only sends it, so that a busy machine does not look like a server that is away."""
        self.page = bytes(generate_latest(self._registry))


@contextmanager
def listening(server: StandIn) -> Iterator[int]:
    """The stand-in's page on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not server.answers:
                self.send_error(503)
                return
            body = server.page
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            with suppress(OSError):  # it gave up
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield http.server_port
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def deploy(server: StandIn, at: float) -> None:
    """A rolling deploy over the servers 9 to 12, each away for four seconds: four minutes of the clock shown."""
    begin = DEPLOY[0] + (server.number - 9) * (DEPLOY[1] - DEPLOY[0]) / 4
    if server.model == SMALL and server.answers and begin <= at < begin + 4:
        server.answers = False
    elif not server.answers and at >= begin + 4:
        server.restart("0.3.0", "0.33.0")
        server.answers = True


def run(fleet: list[StandIn], prom: Prometheus) -> dict[str, Any]:
    """Let the hours pass, then record each dashboard."""
    start = last = time.time()
    while (now := time.time()) - start < SECONDS:
        for server in fleet:
            server.tick(now - last, now - start)
            deploy(server, now - start)
            server.show()
        last = now
        time.sleep(0.4)
    story = {"start": start, "at": now, "speed": SPEED, "stand_ins": True, "shown": SHOWN}
    one_model = {"corevital-model": VARIABLES | {"model": LARGE}}
    recorded = {uid: record(prom, uid, start, now, one_model.get(uid, VARIABLES), SHOWN) for uid in dashboards()}
    return {"story": story, "dashboards": recorded}


def main(out: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="corevital-fleet-"))
    rules = [folder / rule.name for rule in RULES]
    for rule, short in zip(RULES, rules, strict=True):
        short.write_text(shortened_rules(rule.read_text()))
    fleet = [StandIn(number, LARGE if number <= 8 else SMALL, 6 if number <= 8 else 9) for number in range(1, 13)]
    with ExitStack() as stack:
        ports = {f"gpu-{server.number:02d}:8000": stack.enter_context(listening(server)) for server in fleet}
        prom = stack.enter_context(prometheus(folder, {"vllm": ports}, rules))
        recorded = run(fleet, prom)
        Path(out).write_text(json.dumps(recorded))
    firing = {
        (labels["alertname"], labels.get("instance", labels.get("gen_ai_request_model", "")))
        for labels, _ in recorded["dashboards"]["corevital-fleet"]["marks"]["Alerts"]
    }
    print(
        f"{out}: {SECONDS * SPEED / 3600:.1f} hours of {len(fleet)} stand-ins in {SECONDS} s; alerts: {sorted(firing)}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
