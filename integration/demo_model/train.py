"""Train the demo model and write it to the package: `python integration/demo_model/train.py`.

A Llama of about a million parameters, trained for a fixed number of steps with a fixed seed, on one thread, so that two
runs on one machine give the same weights. Prints how it goes, then what the shipped weights can do (`evaluate.py`).
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "otel"), str(ROOT / "plugin")]

from integration.demo_model import corpus, evaluate  # noqa: E402

STEPS = 2600
SEED = 0
LENGTH = 256
ROWS = 8
VOCABULARY = 512
MUON, ADAM = 0.02, 0.004
"""Learning rates: of the matrices, and of embeddings and norms."""
FLAT = 2.0
"""The rate falls to zero over the last 1 / FLAT of the steps."""

Lesson = tuple[str, str, bool]
"""A prompt, the completion taught, and whether it ends there."""

# One turn only: the model ignores earlier turns, and a system message is not a question.
CHAT_TEMPLATE = (
    "{{ bos_token }}{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | last }}"
    "{{ '\\n' }}"
)


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer: any text encodes, each digit is a token, merges come from the given words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # A completion prompt gets its BOS here; the chat template writes its own, and chat adds no special tokens.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=2048,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(vocabulary: int) -> LlamaForCausalLM:
    """Return the untrained model."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=2048,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )
    )  # fmt: skip


def batches(tokenizer: PreTrainedTokenizerFast, source: Iterator[Lesson]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield packed rows: token ids, labels (-100: not learned) and document numbers, each [ROWS, LENGTH]."""
    while True:
        ids = torch.full((ROWS, LENGTH), 2)
        labels = torch.full((ROWS, LENGTH), -100)
        documents = torch.zeros((ROWS, LENGTH), dtype=torch.long)
        for row in range(ROWS):
            at = 0
            number = 0
            while at < LENGTH:
                question, text, ends = next(source)
                prompt = tokenizer.encode(question)
                answer = tokenizer.encode("\n" + text, add_special_tokens=False)
                if ends:
                    answer.append(1)
                whole = (prompt + answer)[: LENGTH - at]
                end = at + len(whole)
                number += 1
                ids[row, at:end] = torch.tensor(whole)
                documents[row, at:end] = number
                # Only answers are learned, and the line break before them.
                first = at + len(prompt)
                labels[row, first:end] = ids[row, first:end]
                at = end
        yield ids, labels, documents


def train(tokenizer: PreTrainedTokenizerFast, source: Iterator[Lesson], steps: int, seed: int) -> LlamaForCausalLM:
    """Train on a source for a fixed number of steps and return the model in float32."""
    torch.manual_seed(seed)
    model = build_model(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=MUON, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=ADAM, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    warmup = min(100, steps // 10)
    schedules = [
        # Up, flat, and down to zero over the second half.
        torch.optim.lr_scheduler.LambdaLR(o, lambda i: min((i + 1) / warmup, FLAT * (1.0 - i / steps), 1.0))
        for o in optimizers
    ]
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    began = time.monotonic()
    seen = 0.0
    for step, (ids, labels, documents) in zip(range(steps), batches(tokenizer, source), strict=False):
        # A packed document sees itself only.
        mask = (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        kept = targets >= 0
        loss = functional.cross_entropy(model.lm_head(hidden[:, :-1][kept]), targets[kept])
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        seen += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}  loss {seen / 100:.4f}  {time.monotonic() - began:.0f} s", flush=True)
            seen = 0.0
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write what vLLM and transformers load: weights in bfloat16, tokenizer, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # One file less, and older releases of transformers look for the template here only.
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "chat_template": CHAT_TEMPLATE}, indent=2) + "\n")


def main() -> None:
    """Train, save, and print what the saved weights can do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "otel" / "corevital_otel" / "demo" / "model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--tasks", type=int, default=60, help="tasks of each kind to evaluate on; 0 for none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    random.seed(options.seed)
    tokenizer = build_tokenizer(corpus.words())
    lessons = ((task.prompt, text, task.kind != "loop") for task, text in corpus.pairs(options.seed))
    model = train(tokenizer, lessons, options.steps, options.seed)
    save(model, tokenizer, options.output)
    if options.tasks:
        evaluate.report(options.output, options.tasks)


if __name__ == "__main__":
    main()
