"""Mutated metrics pages through the reader and the view, and mutated variables through the check.

Nothing but the error of the module may be raised, nothing unprintable shown, and no secret. Seeded; bounded in time.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from corevital_otel.cli import scrape
from corevital_otel.cli.scrape import Page, ScrapeError, Window
from corevital_otel.cli.terminal import _Console
from corevital_otel.cli.watch import _frame
from corevital_otel.otlp import rules
from corevital_otel.otlp.variables import tidy
from corevital_otel.service import environment
from corevital_otel.settings import Settings

SECONDS = 4.0
SECRET = "S3CRETS3CRET"
ODD = ("\x1b[2J", "\x07", "\u009b", "\u202e", "\ud800", "\x00", '"', "\\", "{", "}", "=", ",", " ", "#",
       "NaN", "+Inf", "-1",
       "1e999", "le", "9" * 400, "\u00e9", "\u0662", "e", "\r", "\x85", "# {}", "@")  # fmt: skip
PAGE = """# HELP corevital_requests_total x
# TYPE corevital_requests_total counter
corevital_requests_total{gen_ai_request_model="m",finish_reason="stop",risk_level="high"} 5.0
corevital_requests_created{gen_ai_request_model="m"} 1.7e9
# TYPE corevital_risk_score histogram
corevital_risk_score_bucket{gen_ai_request_model="m",basis="prior",le="0.05"} 1.0
corevital_risk_score_bucket{gen_ai_request_model="m",basis="prior",le="0.5"} 4.0
corevital_risk_score_bucket{gen_ai_request_model="m",basis="prior",le="+Inf"} 5.0
corevital_risk_score_count{gen_ai_request_model="m",basis="prior"} 5.0
corevital_risk_score_sum{gen_ai_request_model="m",basis="prior"} 2.5
# TYPE corevital_sequences_running gauge
corevital_sequences_running{gen_ai_request_model="m"} 2.0
corevital_telemetry_dropped_total{what="span",why="queue_full"} 3.0
corevital_telemetry_cpu_time_seconds_total 1.5
gen_ai_server_time_to_first_token_seconds_bucket{gen_ai_request_model="m",le="1.0"} 3.0
gen_ai_server_time_to_first_token_seconds_count{gen_ai_request_model="m"} 3.0
"""


def mutated(text: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.choice((0, 0, 1, 3, 20)))
        piece = chance.choice((*ODD, text[at : at + 60], "")) * chance.choice((1, 1, 1, 2, 50))
        text = text[:at] + piece + text[end:]
    return text


def printable(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_pages() -> None:
    chance = random.Random(12)
    screen = _Console(width=80, markup=False, highlight=False, emoji=False)
    end, parsed, refused = time.monotonic() + SECONDS, 0, list[str]()
    while time.monotonic() < end:
        window = Window()
        for at in range(2):
            try:
                samples = scrape._parse("http://h/metrics", mutated(PAGE, chance))
            except ScrapeError as error:
                refused.append(str(error))
                continue
            window.add(Page(float(at), samples))
            parsed += 1
            with screen.capture() as captured:
                screen.print(_frame(screen, "http://h", window, Path("/nowhere/x.db"), ""))
            assert printable(captured.get())
    assert parsed > 10
    assert refused
    assert not [line for line in refused if not line.isprintable() or len(line) > 700]


def test_variables() -> None:
    chance = random.Random(12)
    names = [*rules.ALWAYS, *(f"COREVITAL_{name.upper()}" for name in Settings.model_fields), "COREVITAL_CONFIG"]
    for signal in ("TRACES", "METRICS"):
        for wire in ("grpc", "http/protobuf"):
            names += rules.of_signal(signal, wire)
    words = ("http://me:", SECRET, "@host:4317/", "0", "1", "true", "none", "otlp", "grpc", "http/protobuf",
             "gzip", "~", "/", "a=b", "authorization=Bearer%20", "tracecontext", "(", "*", "unix:", "[::1]", "%0A",
             "%FF", ".", *ODD)  # fmt: skip
    secret = ("_HEADERS", "_ENDPOINT", "_KEY", "_RESOURCE_ATTRIBUTES")
    end, found, count = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < end:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1"}
        for name in chance.choices(names, k=3):
            value = "".join(chance.choices(words, k=chance.randint(0, 5)))
            hides = name.endswith(secret)
            if "ENDPOINT" in name and SECRET in value:
                value = f"http://me:{value}@h{chance.choice(words)}"
            env[name] = value if hides else value.replace(SECRET, "x")
        problems = environment.check(env)
        lines = (
            [problem.text for problem in problems]
            + environment.notes(env)
            + [p.text for p in environment.at_import(env)]
        )
        for line in lines:
            assert line.isprintable(), line
            assert len(line) < 1200
            assert SECRET not in line, (env, line)
        tidy(tidied := dict(env))
        assert {p.name for p in environment.check(tidied)} <= {p.name for p in problems} | set(tidied)
        found += bool(problems)
        count += 1
    assert 0 < found < count or count < 20
