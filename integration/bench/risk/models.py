"""The benchmark's models: one per seed, with the demo model's architecture and trainer, trained on :mod:`.tasks`."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

from integration.bench.risk import tasks

STEPS = 800


def model(seed: int, cache: Path) -> Path:
    """The folder of a seed's model, trained unless the same training has left it there before."""
    from integration.demo_model import train as trainer

    recipe = [task.prompt + task.taught for task in itertools.islice(tasks.draw(f"train {seed}"), 1000)]
    recipe += [Path(str(trainer.__file__)).read_text(), str(STEPS)]
    name = hashlib.sha256("".join(recipe).encode()).hexdigest()[:12]
    folder = cache / f"model-{seed}-{name}"
    if not (folder / "tokenizer_config.json").exists():  # written last
        train(seed, folder)
    return folder


def train(seed: int, folder: Path) -> None:
    """Train a seed's model on one thread, the same weights for the same seed on one machine."""
    import torch
    from integration.demo_model import train as trainer

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = trainer.build_tokenizer(_words())
    lessons = ((task.prompt, task.taught, True) for task in tasks.draw(f"train {seed}"))
    trainer.save(trainer.train(tokenizer, lessons, STEPS, seed), tokenizer, folder)


def weights(folder: Path) -> str:
    """A digest of a model's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]


def _words() -> list[str]:
    """Texts to learn the tokenizer's merges from: without letters to sort and numbers, which stay single tokens."""
    some = itertools.islice(tasks.draw("words"), 400)
    return [re.sub(r"\b[A-Z]+\b|[\d_]+", "", f"{task.prompt} {task.taught}") for task in some]
