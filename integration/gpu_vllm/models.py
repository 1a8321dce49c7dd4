"""The models that are served: by name from the Hub, or with random weights made here from a configuration."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from integration.bench.engine import write_model

from corevital_otel.cli.demo.tasks import make_tasks

HUB = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B")
"""Two sizes that anyone may download; a vocabulary of 151936."""

DUMMIES = {
    "dummy-1B": (2048, 16, 128256),
    "dummy-8B": (4096, 38, 128256),
    "dummy-tiny": (64, 2, 2048),
    "dummy-small": (128, 2, 2048),
}
"""Width, layers and vocabulary of Llamas with random weights. They need no network and no disk."""


class Model(NamedTuple):
    """What to serve.

    Attributes:
        name: as asked for.
        engine: arguments of ``LLM`` that belong to it.
        vocab: its vocabulary where its prompts are token ids; 0 where they are text.
    """

    name: str
    engine: dict[str, Any]
    vocab: int

    def prompts(self, number: int) -> list[Any]:
        """``number`` different prompts; those of token ids repeat themselves, so that n-gram drafts find something."""
        if not self.vocab:
            tasks = [task for kind in ("count", "sum", "sort", "story") for task in make_tasks(kind, number, seed=3)]
            return [task.prompt + "\n" for task in tasks[:: len(tasks) // number][:number]]
        rng = random.Random(3)
        parts = ([rng.randrange(2, self.vocab) for _ in range(6)] for _ in range(number))
        return [{"prompt_token_ids": part * 3} for part in parts]


def resolve(name: str, folder: Path, device: str) -> Model:
    """A model by a name of :data:`DUMMIES`, described in ``folder``, or by that of the Hub, or by its path."""
    if name not in DUMMIES:
        return Model(name, {"model": name, "dtype": "auto" if device == "cuda" else "float32"}, 0)
    width, layers, vocab = DUMMIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder, width, layers, vocab)
    config = json.loads((folder / "config.json").read_text())
    # the smallest has two heads as well, for two ranks; few of keys and values, so that 256 sequences fit the cache
    config["num_attention_heads"], config["num_key_value_heads"] = max(2, width // 64), max(2, width // 512)
    # vLLM draws every weight, the last norm's too, from -0.001 to 0.001: this gives logits a standard deviation of 3,
    # where the draws themselves would make all tokens equally likely
    config["logit_scale"] = 3 / (width**0.5 * (1e-3 / 3**0.5) ** 2)
    (folder / "config.json").write_text(json.dumps(config))
    dtype = "bfloat16" if device == "cuda" else "float32"
    engine = {"model": str(folder), "load_format": "dummy", "skip_tokenizer_init": True, "dtype": dtype}
    return Model(name, engine, vocab)
