"""Small random models of the kinds that a shard serves on a CPU. Run by the Python of TGI's environment.

python models.py DEMO_MODEL OUT     # writes OUT/{llama,gpt2,opt,t5}
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def main(demo: Path, out: Path) -> None:
    """The demo model as the transformers of TGI reads it, and others with its tokenizer."""
    import torch
    from transformers import (
        AutoTokenizer,
        GPT2Config,
        GPT2LMHeadModel,
        OPTConfig,
        OPTForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    llama = out / "llama"
    shutil.copytree(demo, llama, dirs_exist_ok=True)
    for name, changes in (
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("config.json", {"torch_dtype": "bfloat16", "rope_theta": 10000.0}),
    ):
        file = llama / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    tokenizer = AutoTokenizer.from_pretrained(llama)
    size, ids = len(tokenizer), {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    gpt2 = GPT2Config(vocab_size=size, n_positions=512, n_embd=128, n_layer=2, n_head=4, initializer_range=0.2, **ids)
    opt = OPTConfig(
        vocab_size=size, hidden_size=128, word_embed_proj_dim=128, num_hidden_layers=2, ffn_dim=256,
        num_attention_heads=4, max_position_embeddings=512, init_std=0.2, **ids,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=size, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, eos_token_id=1, pad_token_id=2,
        decoder_start_token_id=2, initializer_factor=3.0,
    )  # fmt: skip
    for name, make, config in (
        ("gpt2", GPT2LMHeadModel, gpt2),
        ("opt", OPTForCausalLM, opt),
        ("t5", T5ForConditionalGeneration, t5),
    ):
        torch.manual_seed(0)
        make(config).save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
