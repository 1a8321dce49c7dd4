"""What the verdict adds to an answer's time: the same request with and without ``corevital_return``.

    python -m integration.bench.verdict [--pairs 100] [--tokens 32] [--load 0] [--runner v1]

One real server of the demo model. Each pair sends one request twice, in random order, as a whole answer and as a
stream. Compared are the time to the last byte, and of a stream the time from its last token to its end, which varies
far less. ``--load`` requests run at the same time that do not ask. The last line is what each message of an answer
costs whose caller did not ask, without a server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from integration.bench.machine import median_interval, processor, versions
from integration.harness.runners import RUNNERS, runner_environment
from integration.harness.vllm_server import MODEL_NAME, vllm

from corevital_otel.counters import Counters
from corevital_otel.verdicts.answer import Answer

_BACKGROUND = {"max_tokens": 1900, "ignore_eos": True, "stream": True}


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL_NAME, "prompt": prompt, "temperature": 0, "ignore_eos": True, **more}


class Taken(NamedTuple):
    """What an answer took, in milliseconds.

    Attributes:
        whole: to its last byte.
        end: of a stream, from its last token to its end; of a whole answer 0.
        has_verdict: the verdict was there.
    """

    whole: float
    end: float
    has_verdict: bool


async def ask(http: httpx.AsyncClient, number: int, tokens: int, *, stream: bool, asks: bool) -> Taken:
    sent = body(f"What is {number} + {number}?\n", max_tokens=tokens, stream=stream)
    if asks:
        sent["vllm_xargs"] = {"corevital_return": 1}
    begun = time.perf_counter()
    last, has_verdict = 0.0, False
    async with http.stream("POST", "/v1/completions", json=sent) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            has_verdict = has_verdict or '"risk_level"' in line
            last = time.perf_counter() if '"finish_reason":"length"' in line else last
    ended = time.perf_counter()
    return Taken((ended - begun) * 1e3, (ended - last) * 1e3 if stream else 0.0, has_verdict)


async def load(http: httpx.AsyncClient) -> None:
    while True:
        await http.post("/v1/completions", json=body("Tell me a story.\n", **_BACKGROUND))


Pairs = list[tuple[Taken, Taken]]
"""Of each pair the answer with the verdict and the one without."""


async def measure(url: str, options: argparse.Namespace) -> dict[str, Pairs]:
    """The pairs of whole answers and of streams."""
    pairs: dict[str, Pairs] = {"whole answer": [], "stream": []}
    rng, missing = random.Random(5), 0
    async with httpx.AsyncClient(base_url=url, timeout=120, verify=False) as http:  # noqa: S501 - plain HTTP to this host: no certificates to read
        others = [asyncio.create_task(load(http)) for _ in range(options.load)]
        for number in range(-5, options.pairs):  # the first ones warm up
            for form, its in pairs.items():
                found = {}
                for asks in rng.sample((False, True), 2):
                    found[asks] = await ask(http, number, options.tokens, stream=form == "stream", asks=asks)
                    missing += asks and not found[asks].has_verdict
                    await asyncio.sleep(rng.uniform(0, 0.1))
                if number >= 0:
                    its.append((found[True], found[False]))
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    print(f"answers without the verdict that they asked for: {missing}")
    return pairs


def untouched_us(messages: int = 200_000) -> float:
    """Microseconds that a message of an answer takes longer whose caller did not ask."""

    async def nowhere(message: Any) -> None:
        pass

    async def pass_on(send: Any) -> float:
        message = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
        begun = time.perf_counter()
        for _ in range(messages):
            await send(message)
        return (time.perf_counter() - begun) / messages * 1e6

    runs = [asyncio.run(pass_on(Answer(nowhere, Counters()).send)) - asyncio.run(pass_on(nowhere)) for _ in range(9)]
    return statistics.median(runs)


def _row(name: str, pairs: list[tuple[float, float]]) -> None:
    longer = [asked - plain for asked, plain in pairs]
    asked, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
    high = statistics.quantiles(longer, n=10)[-1]
    print(f"| {name} | {asked:.1f} | {plain:.1f} | {median_interval(longer, '+.1f')} | {high:+.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the verdict adds to an answer's time.")
    for name, default in {"pairs": 100, "tokens": 32, "load": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--runner", choices=RUNNERS, default="v1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        env = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", **runner_environment(options.runner)}
        with vllm(Path(name).resolve(), "--dtype", "float32", env=env) as server:
            pairs = asyncio.run(measure(server.url, options))
    print(f"{processor()}; {versions('vllm-cpu', 'vllm', 'torch')}; load average {os.getloadavg()[0]:.1f}")
    print(f"runner {options.runner}, {options.tokens} tokens, {options.load} other requests, {options.pairs} pairs\n")
    print("| ms | with the verdict | without | difference of a pair | its 90th percentile |\n" + "| --- " * 5 + "|")
    _row("whole answer", [(asked.whole, plain.whole) for asked, plain in pairs["whole answer"]])
    _row("stream", [(asked.whole, plain.whole) for asked, plain in pairs["stream"]])
    _row("stream, from its last token to its end", [(asked.end, plain.end) for asked, plain in pairs["stream"]])
    print(f"\nnot asked: {untouched_us():+.2f} µs a message")


if __name__ == "__main__":
    main()
