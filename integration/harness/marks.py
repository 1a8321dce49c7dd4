"""A model that marks its reasoning and its calls of tools: the demo model, with a tokenizer that has the marks.

The demo model was not trained to use them. A separate logits processor makes it say a token at an output index, as a
trained one would: that token is very likely there, and nothing is masked. Not part of the product.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from integration.harness.vllm_server import MODEL
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

MARKS = {"<think>": 508, "</think>": 509, "<tool_call>": 510, "</tool_call>": 511}
"""Tokens and their ids, in place of the last ones that the demo tokenizer was trained to."""
_SURE = 40.0
"""Above the model's own highest logit."""


def marked_model(folder: Path) -> Path:
    """The demo model with these tokens, in ``folder``."""
    shutil.copytree(MODEL, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    model = tokenizer["model"]
    gone = {text for text, token in model["vocab"].items() if token in MARKS.values()}
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in gone]
    model["vocab"] = {text: token for text, token in model["vocab"].items() if text not in gone}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokenizer["added_tokens"] += [{"id": token, "content": text, **plain} for text, token in MARKS.items()]
    path.write_text(json.dumps(tokenizer))
    return folder


class SaysMarks(AdapterLogitsProcessor):
    """Makes requests whose ``extra_args`` have ``"say": "12:509,20:510"`` say these tokens at these output indices."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        asked = (params.extra_args or {}).get("say")
        if not asked:
            return None
        says = {int(at): int(token) for at, _, token in (part.partition(":") for part in str(asked).split(","))}

        def apply(output: list[int], logits: torch.Tensor) -> torch.Tensor:
            token = says.get(len(output))
            if token is not None:
                logits[token] = logits.max() + _SURE
            return logits

        return apply
