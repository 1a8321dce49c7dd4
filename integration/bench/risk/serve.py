"""One model served through real vLLM with the plugin: ``python -m integration.bench.risk.serve JOB OUT``.

In a separate process that holds the engine too: requests then enter and are batched in the same order each time.
The job: ``model``, ``processors``, ``engine`` arguments and ``requests``, each ``[prompt or token ids, sampling
parameters]``; with ``halve`` all are served a second time, each up to the half of its tokens. What the plugin saw is in
the store of ``COREVITAL_DB``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.harness.processes import ROOT, environment

from corevital_otel.store.reader import StoredReport, StoreReader


def main(job_file: str, out_file: str) -> None:
    from vllm import LLM, SamplingParams

    job = json.loads(Path(job_file).read_text())
    llm = LLM(
        job["model"], served_model_name="bench-risk", logits_processors=job["processors"], dtype="float32",
        max_model_len=2048, max_num_seqs=32, enforce_eager=True, enable_prefix_caching=False, **job["engine"],
    )  # fmt: skip

    def generate(requests: list[tuple[Any, dict[str, Any]]]) -> list[list[int]]:
        prompts = [prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt} for prompt, _ in requests]
        outputs = llm.generate(prompts, [SamplingParams(**params) for _, params in requests], use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    tokens = generate(job["requests"])
    if job["halve"]:
        halves = [-(-len(answer) // 2) for answer in tokens]
        requests = zip(job["requests"], halves, strict=True)
        tokens += generate([(prompt, {**params, "max_tokens": half}) for (prompt, params), half in requests])
    Path(out_file).write_text(json.dumps(tokens))


def serve(
    folder: Path,
    model: Path,
    requests: list[tuple[Any, dict[str, Any]]],
    processors: tuple[str, ...] = ("corevital",),
    *,
    halve: bool = False,
    **engine: Any,
) -> list[tuple[list[int], StoredReport]]:
    """Each request's tokens and what the store has of it, series included; with ``halve`` those of the halves behind.

    Raises:
        RuntimeError: vLLM ended with an error, or a request is not in the store.
    """
    job = {
        "model": str(model.resolve()),
        "processors": processors,
        "requests": requests,
        "halve": halve,
        "engine": engine,
    }
    (folder / "job.json").write_text(json.dumps(job))
    database = folder / "corevital.db"
    settings = {"COREVITAL_DB": str(database), "COREVITAL_CAPTURE": "full", "PYTHONPATH": str(ROOT)}
    # What makes two runs give the same to the last bit: one process, one thread, and MKL set to compute the same way
    # wherever its operands lie in memory.
    settings |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"}
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "job.json", "out.json"],
        cwd=folder, env=environment(settings),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"vLLM ended with {done.returncode}:\n{(done.stdout + done.stderr)[-8000:]}")
    tokens = json.loads((folder / "out.json").read_text())
    store = StoreReader(database)
    found = {row.request_id: row for row in store.list_reports(limit=len(tokens) + 1)}
    if len(found) != len(tokens):
        raise RuntimeError(f"of {len(tokens)} requests the store has {len(found)}")
    return [(answer, store.get(row_id)[0]) for answer, row_id in zip(tokens, sorted(found, key=int), strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
