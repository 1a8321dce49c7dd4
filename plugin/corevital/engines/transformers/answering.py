"""Answers prompts from standard input under a monitor; started with a model's folder, and the name to report it under.

For ``corevital demo --engine transformers``, whose half imports neither torch nor transformers. A line of input is a
batch, as JSON: ``prompts``, ``max_tokens``, ``temperature``, ``n``. A line of output has, as JSON, ``request_id``,
``sequence`` and ``text`` of each answer, prompt by prompt. Settings are those of a server.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corevital.engines.transformers import Monitor


def main(folder: str, name: str) -> None:
    """Answer until the end of the input.

    Args:
        folder: of the model.
        name: that it is reported under.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.name_or_path = name
    torch.manual_seed(0)
    with Monitor() as monitor:
        for line in sys.stdin:
            known = len(monitor.reports)
            _generate(model, tokenizer, json.loads(line), monitor)
            found = [
                {
                    "request_id": report.admitted.request_id,
                    "sequence": report.admitted.sequence,
                    "text": tokenizer.decode(list(report.outcome.token_ids), skip_special_tokens=True),
                }
                for report in monitor.reports[known:]
            ]
            sys.stdout.write(f"{json.dumps(found)}\n")
            sys.stdout.flush()


def _generate(model: Any, tokenizer: Any, batch: dict[str, Any], monitor: Monitor) -> None:
    inputs = tokenizer(batch["prompts"], return_tensors="pt", padding=True, return_token_type_ids=False)
    sampling = {"do_sample": True, "temperature": batch["temperature"], "top_k": 0} if batch["temperature"] else {}
    model.generate(
        **inputs,
        **sampling,
        max_new_tokens=batch["max_tokens"],
        num_return_sequences=batch["n"],
        logits_processor=monitor.processors,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
