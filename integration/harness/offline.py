"""One offline vLLM run for the tests, in a separate process: ``python -m integration.harness.offline JOB OUT``.

The job: ``processors`` (what ``LLM`` gets as ``logits_processors``), ``dtype``, further ``engine`` arguments, and
``rounds``, each a list of ``[prompt, sampling parameters]`` generated together. ``beams``: prompts to search with three
beams; ``chats``: messages to answer twice each. ``metrics``: print the engine's own counters at the end.
"""

import json
import sys
from pathlib import Path

from integration.harness.vllm_server import MODEL, MODEL_NAME


def main(job_file: str, out_file: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TextPrompt
    from vllm.sampling_params import BeamSearchParams

    job = json.loads(Path(job_file).read_text())
    llm = LLM(
        str(MODEL),
        served_model_name=MODEL_NAME,
        logits_processors=job["processors"] or None,
        dtype=job.get("dtype", "float32"),
        max_model_len=1024,
        disable_log_stats=not job.get("metrics"),
        **{"max_num_seqs": 16, "enforce_eager": True, **job.get("engine", {})},
    )
    rounds = []
    for requests in job["rounds"]:
        prompts = [prompt for prompt, _ in requests]
        outputs = llm.generate(prompts, [SamplingParams(**params) for _, params in requests], use_tqdm=False)
        rounds.append([[list(completion.token_ids) for completion in output.outputs] for output in outputs])
    if job.get("beams"):
        searched = [TextPrompt(prompt=prompt) for prompt in job["beams"]]
        llm.beam_search(searched, BeamSearchParams(beam_width=3, max_tokens=4))
    if job.get("chats"):
        said = [[{"role": "user", "content": message}] for message in job["chats"]]
        llm.chat(said, SamplingParams(n=2, max_tokens=4), use_tqdm=False)
    Path(out_file).write_text(json.dumps(rounds))
    if job.get("metrics"):
        counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        print("metrics", json.dumps(counters))


if __name__ == "__main__":
    main(*sys.argv[1:])
