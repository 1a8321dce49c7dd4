"""What a folder's demo model can do: accuracy, entropy and AUROC per kind of task, and how often it loops.

`python integration/demo_model/evaluate.py` for the shipped one.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "otel"), str(ROOT / "plugin")]

from corevital_otel.cli.demo import MODEL_DIR  # noqa: E402
from corevital_otel.cli.demo.tasks import KINDS, Task, check, make_tasks  # noqa: E402

TASK_SEED = 7
MAX_TOKENS = 300


@dataclass(frozen=True)
class Run:
    """One completion with the entropies behind it."""

    task: Task
    text: str
    ended: bool
    """Whether it ended by itself."""
    entropies: Tensor
    """[tokens], nats, of the untempered distributions."""


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: list[Task], temperature: float, seed: int = 0
) -> list[Run]:
    """Complete all tasks in one left-padded batch; temperature 0 is greedy."""
    inputs = tokenizer([task.prompt + "\n" for task in tasks], return_tensors="pt", padding=True)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    generator = torch.Generator().manual_seed(seed)
    cache = None
    written: list[Tensor] = []
    entropies: list[Tensor] = []
    going = torch.ones(len(tasks), dtype=torch.bool)
    step = ids
    while going.any() and len(written) < MAX_TOKENS:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
        output = model(input_ids=step, attention_mask=mask, position_ids=positions, past_key_values=cache)
        cache = output.past_key_values
        logprobs = output.logits[:, -1].float().log_softmax(-1)
        if temperature:
            tokens = torch.multinomial((logprobs / temperature).softmax(-1), 1, generator=generator)
        else:
            tokens = logprobs.argmax(-1, keepdim=True)
        entropies.append(-(logprobs.exp() * logprobs).sum(-1))
        written.append(tokens[:, 0])
        going &= tokens[:, 0] != tokenizer.eos_token_id
        mask = torch.cat([mask, mask.new_ones(len(tasks), 1)], 1)
        step = tokens
    runs = []
    for task, row, entropy in zip(tasks, torch.stack(written, 1), torch.stack(entropies, 1), strict=True):
        ends = (row == tokenizer.eos_token_id).nonzero()
        n = int(ends[0]) + 1 if len(ends) else len(row)
        runs.append(Run(task, tokenizer.decode(row[:n], skip_special_tokens=True), bool(len(ends)), entropy[:n]))
    return runs


def auroc(wrong: list[float], right: list[float]) -> float:
    """Return the chance that a wrong run scores above a right one, ties counting half; NaN without both."""
    if not wrong or not right:
        return float("nan")
    difference = torch.tensor(wrong)[:, None] - torch.tensor(right)[None, :]
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


def repeats(text: str, longest: int = 6, times: int = 8) -> bool:
    """Whether a text ends in at least `times` repetitions of up to `longest` words."""
    words = text.split()[:-1]  # the last one may be cut
    for period in range(1, longest + 1):
        tail = words[-period * times :]
        if len(tail) == period * times and all(tail[i] == tail[i - period] for i in range(period, len(tail))):
            return True
    return False


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def report(folder: Path, n: int) -> None:
    """Print the tables for the model in a folder, `n` tasks of each kind, as Markdown."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for temperature in (0.0, 0.7, 1.0):
        print(f"\n{'greedy' if not temperature else f'temperature {temperature}'}, {n} tasks of each kind\n")
        print("| kind | right | ΣH right | ΣH wrong | max H right | max H wrong | AUROC ΣH | AUROC max H | tokens |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        accuracies, unchecked = [], []
        for kind in KINDS:
            runs = complete(model, tokenizer, make_tasks(kind, n, TASK_SEED), temperature)
            tokens = _mean([float(len(run.entropies)) for run in runs])
            if runs[0].task.answer is None:
                looping = _mean([float(repeats(run.text) and not run.ended) for run in runs])
                ended = _mean([float(run.ended) for run in runs])
                entropy = _mean([float(run.entropies.mean()) for run in runs])
                unchecked.append(
                    f"{kind}: {ended:.0%} end by themselves, {looping:.0%} repeat up to the limit of {MAX_TOKENS} "
                    f"tokens; mean entropy {entropy:.2f}, {tokens:.0f} tokens"
                )
                continue
            right = [run.entropies for run in runs if check(run.task, run.text)]
            wrong = [run.entropies for run in runs if not check(run.task, run.text)]
            accuracies.append(len(right) / n)
            sums = [[float(e.sum()) for e in group] for group in (right, wrong)]
            peaks = [[float(e.max()) for e in group] for group in (right, wrong)]
            print(
                f"| {kind} | {len(right) / n:.0%} | {_mean(sums[0]):.2f} | {_mean(sums[1]):.2f} | "
                f"{_mean(peaks[0]):.2f} | {_mean(peaks[1]):.2f} | {auroc(sums[1], sums[0]):.2f} | "
                f"{auroc(peaks[1], peaks[0]):.2f} | {tokens:.0f} |",
                flush=True,
            )
        print(f"\nright over all kinds: {_mean(accuracies):.0%}")
        print("\n".join(unchecked), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    report(MODEL_DIR, 200)
