"""One vLLM engine in a separate process: ``python -m integration.gpu_vllm.engine FD ARGUMENTS``.

``FD`` is one end of a :func:`multiprocessing.Pipe`, ``ARGUMENTS`` are those of ``LLM``, as JSON. Jobs come in and
answers go out, see :mod:`integration.gpu_vllm.jobs`. It ends when None comes in, or when the other process is gone.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from integration.gpu_vllm.jobs import Answer, Job


def run(llm: Any, job: Job) -> Answer:
    """Generate."""
    from vllm import SamplingParams

    params = [SamplingParams(**values, detokenize=False) for values in job.params]
    start = time.perf_counter()
    if job.how == "alone":
        outputs = [
            llm.generate([prompt], own, use_tqdm=False)[0] for prompt, own in zip(job.prompts, params, strict=True)
        ]
    elif job.how == "held":
        llm.sleep(level=0)
        llm.enqueue(job.prompts, params, use_tqdm=False)
        llm.wake_up(tags=["scheduling"])
        outputs = llm.wait_for_completion(use_tqdm=False)
    else:
        outputs = llm.generate(job.prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    completions = [output.outputs[0] for output in outputs]
    metrics = llm.get_metrics() if llm.llm_engine.log_stats else []
    counters = {metric.name: metric.value for metric in metrics if hasattr(metric, "value")}
    logprobs = [
        [
            (places[token].logprob, sorted((place.logprob for place in places.values()), reverse=True)[:20])
            for token, places in zip(completion.token_ids, completion.logprobs, strict=True)
        ]
        for completion in completions
        if completion.logprobs
    ]
    return Answer([list(completion.token_ids) for completion in completions], logprobs, seconds, counters)


def main(descriptor: str, arguments: str) -> None:
    from vllm import LLM

    pipe = Connection(int(descriptor))
    llm = LLM(**json.loads(arguments))
    pipe.send(llm.llm_engine.model_config.get_vocab_size())
    try:
        while (job := pipe.recv()) is not None:
            pipe.send(run(llm, job))
    except (EOFError, ConnectionResetError):
        pass  # nobody asks any more
    del llm
    gc.collect()  # otherwise Python waits for its processes at exit


if __name__ == "__main__":
    main(*sys.argv[1:])
