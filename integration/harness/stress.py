"""Many short requests in few slots, aborted at random and preempted: ``python -m integration.harness.stress OUT``.

Writes as JSON what the client received for each request (tokens, finish reason), the engine's preemptions, and the
resident memory of this process and of its children by the number of requests done.
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from integration.harness.vllm_server import MODEL, MODEL_NAME

REQUESTS = 300
SLOTS = 8


def resident_mb() -> float:
    """Resident memory of this process and its descendants, MB."""
    parents, sizes = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                sizes[int(entry.name)] = int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except (FileNotFoundError, ProcessLookupError):
                continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return sum(size for pid, size in sizes.items() if ours(pid)) / 1e6


def main(out_file: str) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(MODEL),
        served_model_name=MODEL_NAME,
        logits_processors=["corevital"],
        dtype="float32",
        max_model_len=192,
        max_num_seqs=SLOTS,
        max_num_batched_tokens=64,  # prompts come in chunks
        num_gpu_blocks_override=10,  # too few for eight requests: some are preempted
        block_size=32,
        enable_prefix_caching=False,
        enforce_eager=True,
        disable_log_stats=False,
    )
    engine = llm.llm_engine
    rng = random.Random(7)
    waiting = [str(number) for number in range(REQUESTS)]
    running: set[str] = set()
    results: dict[str, Any] = {}
    memory = []
    while waiting or running:
        while waiting and len(running) < 2 * SLOTS:
            request_id = waiting.pop(0)
            prompt = "Tell me a story about a baker and a mill.\n" * rng.randint(1, 6)
            # without a seed: vLLM's V1 on a CPU dies of a seeded request whose prompt comes in chunks
            params = SamplingParams(temperature=rng.choice([0.0, 0.7, 1.3]), max_tokens=rng.randint(1, 40))
            engine.add_request(request_id, prompt, params)
            running.add(request_id)
        if running and rng.random() < 0.05:
            request_id = rng.choice(sorted(running))
            engine.abort_request([request_id])
            running.discard(request_id)
            results[request_id] = {"tokens": None, "reason": "abort"}
        for output in engine.step():
            if output.finished and output.request_id in running:
                (completion,) = output.outputs
                running.discard(output.request_id)
                results[output.request_id] = {"tokens": list(completion.token_ids), "reason": completion.finish_reason}
                if len(results) % 20 == 0:
                    memory.append((len(results), resident_mb()))
    counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    outcome = {"results": results, "preemptions": counters["vllm:num_preemptions"], "memory_mb": memory}
    Path(out_file).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
