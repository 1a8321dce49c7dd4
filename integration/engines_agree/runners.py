"""How each engine runs on the demo model here: float32, greedy, one request at a time, rows in a store.

To add an engine, add a :class:`Runner`. One whose environment is missing is reported as not run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from unittest.mock import patch

from integration.engines_agree.asks import Ask, settings
from integration.engines_agree.others import sglang, sglang_missing, tgi, tgi_missing
from integration.harness.runners import RUNNERS, runner_environment
from integration.harness.vllm_server import MODEL
from tests.harness.processes import environment

_LIMIT_S: Final = 1200.0


class Runner(NamedTuple):
    """An engine.

    Attributes:
        name: for the table.
        missing: why it cannot run here; "" where it can.
        run: answers the requests, in a folder, and leaves the rows in its store. Returns the tokens.
    """

    name: str
    missing: Callable[[], str]
    run: Callable[[Path, Sequence[Ask]], list[list[int]]]


def _vllm(runner: str, folder: Path, asked: Sequence[Ask]) -> list[list[int]]:
    rounds = [
        [
            [
                {"prompt_token_ids": ask.ids},
                {"temperature": 0.0, "max_tokens": ask.max_tokens, "repetition_penalty": ask.penalty},
            ]
        ]
        for ask in asked
    ]
    (folder / "job.json").write_text(json.dumps({"processors": ["corevital"], "rounds": rounds}))
    done = subprocess.run(
        [sys.executable, "-m", "integration.harness.offline", "job.json", "out.json"],
        cwd=folder,
        env=environment({**settings(folder), **runner_environment(runner)}),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-8000:])
    return [answer[0] for (answer,) in json.loads((folder / "out.json").read_text())]


def _transformers(folder: Path, asked: Sequence[Ask]) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    from corevital.engines.transformers import Monitor

    model, threads = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), torch.get_num_threads()
    with patch.dict(os.environ, environment(settings(folder)), clear=True), Monitor() as monitor:
        torch.set_num_threads(1)  # the fastest for a model this small
        for ask in asked:
            prompt = torch.tensor([ask.ids])
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=ask.max_tokens,
                do_sample=False,
                repetition_penalty=ask.penalty,
                logits_processor=monitor.processors,
            )
        torch.set_num_threads(threads)
    return [list(report.outcome.token_ids) for report in monitor.reports]


def _vllm_missing(runner: str) -> str:
    return "" if runner in RUNNERS else "the installed vLLM has no logits processors under it"


ENGINES: Final = (
    Runner("vLLM V1", partial(_vllm_missing, "v1"), partial(_vllm, "v1")),
    Runner("vLLM V2", partial(_vllm_missing, "mrv2"), partial(_vllm, "mrv2")),
    Runner("transformers", lambda: "", _transformers),
    Runner("SGLang", sglang_missing, sglang),
    Runner("TGI", tgi_missing, tgi),
)
