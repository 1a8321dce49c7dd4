"""One incident from beginning to end, "a model starts to loop": ``python -m integration.docs.incident OUT``.

A real vLLM, Prometheus and Alertmanager, sixty times as fast as in our files (see :mod:`integration.harness.alerting`);
the trace backend is Phoenix, which runs on any machine. Prints what an operator sees at each step, for
docs/operate/incident.md, and writes the data behind the dashboards' panels to OUT, for
``python -m integration.docs.pictures``.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from integration.docs.recording import dashboards, record
from integration.harness.alerting import SPEED, Notice, shortened_query
from integration.harness.phoenix import Phoenix, phoenix
from integration.harness.vllm_server import MODEL_NAME
from integration.harness.watched import Watched, until, watched
from tests.harness.collector import collector
from tests.harness.processes import BIN, ROOT, environment

ALERT = "CorevitalLoopShareHigh"
PLAIN = {"plain": 5}
LOOPING = {"plain": 4, "loop": 2}
RUNBOOK = ROOT / f"dashboards/runbooks/{ALERT}.md"
VARIABLES = {"cluster": ".*", "model": ".+", "instance": ".+", "__rate_interval": "15s", "compare": "60s"}
SHOWN = {"compare": "1h"}
"""At the ordinary speed."""
TELLING = {
    "http.response.status_code",
    "corevital.health.loop_onset",
    "corevital.health.loop_period",
    "corevital.health.repetition_loop_detected",
    "corevital.risk.level",
    "corevital.risk_score",
    "gen_ai.response.finish_reasons",
    "gen_ai.response.id",
    "gen_ai.usage.output_tokens",
}
FILTER = "attributes['corevital']['health']['repetition_loop_detected'] == True"


def say(title: str, text: str = "") -> None:
    print(f"\n## {title}\n{text}", flush=True)


def shell(here: Watched, *arguments: str) -> str:
    """``corevital …`` as an operator calls it, on this store."""
    command = [str(BIN / "corevital"), *arguments]
    env = environment({"COREVITAL_DB": str(here.database), "COLUMNS": "110"})
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    shown = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
    return f"$ corevital {' '.join(arguments)}\n{shown}"


def notice_text(notice: Notice) -> str:
    lines = [f"[{notice.status}] to the receiver {notice.receiver}"]
    lines += [f"{name}: {value}" for name, value in {**notice.labels, **notice.annotations}.items()]
    return "\n".join(lines)


def asked_by_runbook(language: str) -> list[str]:
    """The lines of the first block in this language of the alert's runbook."""
    block = RUNBOOK.read_text().partition(f"```{language}\n")[2].partition("```")[0]
    return [line.replace("MODEL", MODEL_NAME) for line in block.splitlines()]


def answered(here: Watched, expression: str) -> str:
    """A query and Prometheus' answer, its durations shortened like those of the rules."""
    rows = []
    for labels, value in here.prometheus.query(shortened_query(expression)):
        named = ", ".join(f'{name}="{value}"' for name, value in labels.items() if not name.startswith("__"))
        rows.append(f"{{{named}}}  {value:.4g}")
    return "\n".join([expression, *(rows or ["(nothing)"])])


def found_trace(backend: Phoenix) -> tuple[str, str]:
    """The newest trace with a loop, found by a filter, span by span; and its request's id."""
    until(lambda: bool(backend.found(FILTER)), 60, "a span with a loop in Phoenix")
    found, spans = backend.found(FILTER), backend.spans()
    newest = max((span for span in spans if span["context"]["span_id"] in found), key=lambda span: span["start_time"])
    trace = [span for span in spans if span["context"]["trace_id"] == newest["context"]["trace_id"]]
    lines = [f"filter: {FILTER}", f"{len(found)} spans; the newest one's trace {newest['context']['trace_id']}:"]
    for span in sorted(trace, key=lambda span: span["start_time"]):
        lines.append(f"{span['name']}  {span['start_time'][11:23]} to {span['end_time'][11:23]}")
        lines += [f"    {name} = {value}" for name, value in sorted(span["attributes"].items()) if name in TELLING]
    return "\n".join(lines), str(newest["attributes"]["gen_ai.response.id"])


def incident(here: Watched, backend: Phoenix, out: Path) -> None:
    """Plain traffic, then looping requests, then plain traffic again."""
    traffic, manager = here.traffic, here.alertmanager
    start = time.time()
    traffic.mix = PLAIN
    time.sleep(75)
    say("Before", f"alerts: {sorted(here.names('pending') | here.names('firing')) or 'none'}")
    traffic.mix = LOOPING
    began = time.time()
    until(lambda: ALERT in manager.notified("firing"), 90, ALERT)
    first = next(notice for notice in manager.notices if notice.name == ALERT)
    say(f"The alert, {first.at - began:.0f} s after the first looping request", notice_text(first))
    say("The runbook's queries", "\n\n".join(answered(here, query) for query in asked_by_runbook("promql")))
    listing = shlex.split(asked_by_runbook("sh")[0])[1:]
    say("The bad requests", shell(here, *listing, "--limit", "5"))
    trace, request_id = found_trace(backend)
    say("The trace", trace)
    say("The request", shell(here, "show", request_id))
    traffic.mix = PLAIN
    ended = time.time()
    until(lambda: ALERT in manager.notified("resolved"), 120, f"{ALERT} resolved")
    last = [notice for notice in manager.notices if notice.name == ALERT][-1]
    say(f"Resolved, {last.at - ended:.0f} s after the last looping request", notice_text(last).splitlines()[0])
    # what an operator sees who looks when the loops have just ended
    story = {"start": start, "at": ended, "speed": SPEED, "shown": SHOWN}
    recorded = {uid: record(here.prometheus, uid, start, ended, VARIABLES, SHOWN) for uid in dashboards()}
    out.write_text(json.dumps({"story": story, "dashboards": recorded}))


def main(out: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="corevital-incident-"))
    with (
        phoenix(folder) as backend,
        collector(folder, f"{backend.http}/v1/traces") as rotel,
        watched(folder, rotel.http) as here,
    ):
        incident(here, backend, Path(out))


if __name__ == "__main__":
    main(sys.argv[1])
