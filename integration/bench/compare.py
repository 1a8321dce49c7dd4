"""How often ``corevital compare`` is right, on rows of the demo model: ``python -m integration.bench.compare``.

Serves the same prompts several times with transformers, by the demo model and by a copy whose weights are rounded to
int8 (one scale a channel), and draws samples of 200 requests from the rows. A/A: both samples are the demo model's.
Needs torch and transformers to make the rows; ``--rows FOLDER`` keeps them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import random
import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from corevital_otel.cli.demo.tasks import KINDS, make_tasks
from corevital_otel.compare.slices import Slice
from corevital_otel.compare.verdict import compare
from corevital_otel.counters import Counters
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.reader import StoredReport
from corevital_otel.store.writer import StoreWriter

MODEL = Path(__file__).parents[2] / "otel/corevital_otel/cli/demo/model"
TEMPERATURES = (0.0, 0.7, 1.0)
BATCH = 256
Rows = dict[str, list[StoredReport]]


def prompts(count: int) -> list[str]:
    """Distinct prompts of all kinds, in random order."""
    tasks = [task for kind in KINDS for task in make_tasks(kind, count, 5)]
    random.Random(0).shuffle(tasks)
    return list(dict.fromkeys(task.prompt for task in tasks))[:count]


def int8_copy(source: Path, target: Path) -> None:
    """A copy of a model whose matrices are rounded to int8, with one scale a row."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2:
            scale = weight.float().abs().amax(1, keepdim=True) / 127
            weights[name] = ((weight.float() / scale).round() * scale).to(torch.float32)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def serve(model_path: Path, store: Path, texts: list[str], runs: int, *, tokens: int = 32, seed: int = 0) -> None:
    """Answer all prompts so many times, a third of them at each temperature, each time in other batches."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from corevital.engines.transformers import Monitor

    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    torch.manual_seed(seed)
    order: list[str] = []
    with Monitor(capture="summary") as monitor:
        for run in range(runs):
            for i, temperature in enumerate(TEMPERATURES):
                mine = texts[i :: len(TEMPERATURES)]
                random.Random(f"{seed} {run}").shuffle(mine)
                sampled = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
                for at in range(0, len(mine), BATCH):
                    part = mine[at : at + BATCH]
                    inputs = tokenizer(
                        [f"{tokenizer.bos_token}{text}\n" for text in part],
                        return_tensors="pt",
                        padding=True,
                        add_special_tokens=False,
                        return_token_type_ids=False,
                    )
                    model.generate(**inputs, max_new_tokens=tokens, logits_processor=monitor.processors, **sampled)
                    order += part
        reports = monitor.reports
    writer = StoreWriter(store, 30, 1024, Counters())
    for number, (report, text) in enumerate(zip(reports, order, strict=True), 1):
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        hashed: Any = dataclasses.replace(report, admitted=dataclasses.replace(report.admitted, prompt_hash=digest))
        writer.put(record_of(hashed, SpanIds(f"{number:032x}", f"{number:016x}")))
    writer.close(60)


def rows_of(store: Path) -> Rows:
    """The requests of a store, by prompt."""
    found: Rows = defaultdict(list)
    for report in Slice(str(store), store).read()[0]:
        found[report.summary["corevital.prompt.hash"]].append(report)
    return found


def matched(a: Rows, b: Rows, requests: int, rng: random.Random) -> tuple[list[StoredReport], list[StoredReport]]:
    """Half as many prompts, each twice on both sides; the same row is never on both."""
    first, second = [], []
    for digest in rng.sample(sorted(a), requests // 2):
        mine = rng.sample(a[digest], 2)
        first += mine
        second += rng.sample([row for row in b[digest] if row not in mine], 2)
    return first, second


def unmatched(a: Rows, requests: int, rng: random.Random) -> tuple[list[StoredReport], list[StoredReport]]:
    """Different prompts on both sides."""
    drawn = [rng.choice(a[digest]) for digest in rng.sample(sorted(a), 2 * requests)]
    return drawn[:requests], drawn[requests:]


def without_hash(reports: list[StoredReport]) -> list[StoredReport]:
    """The same requests, as a server without ``COREVITAL_PROMPT_HASH_KEY`` stores them."""
    return [
        dataclasses.replace(
            report, summary={name: value for name, value in report.summary.items() if name != "corevital.prompt.hash"}
        )
        for report in reports
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--requests", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.rows or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        stores = {name: folder / f"{name}.db" for name in ("demo", "int8")}
        if not stores["int8"].exists():
            texts = prompts(600)
            int8_copy(MODEL, Path(temporary, "model"))
            serve(MODEL, stores["demo"], texts, 4)
            serve(Path(temporary, "model"), stores["int8"], texts, 2, seed=1)
        demo, int8 = rows_of(stores["demo"]), rows_of(stores["int8"])
    rng = random.Random(0)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for _ in range(given.pairs):
        pair = matched(demo, demo, given.requests, rng)
        found["A/A, matched"][compare(*pair).verdict] += 1
        pair = unmatched(demo, given.requests, rng)
        found["A/A, other prompts"][compare(*map(without_hash, pair)).verdict] += 1
        pair = matched(demo, int8, given.requests, rng)
        found["int8, matched"][compare(*pair).verdict] += 1
    print(f"{given.pairs} pairs of {given.requests} requests a side")
    for name, counts in found.items():
        print(f"{name}: " + ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common()))


if __name__ == "__main__":
    main()
