"""The mixed requests in an offline ``LLM``: ``python -m integration.harness.frontends.offline_client OUT [PROCESSOR]``.

Without a processor it is the reference: the tokens that this model makes on this runner without corevital.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from integration.harness.frontends.mixed import Answer, Request, mixed
from integration.harness.vllm_server import MODEL, MODEL_NAME


def requests() -> list[Request]:
    """What can be sent here: nothing hangs up, and nothing streams."""
    return mixed(aborts=False, streams=False)


def reference_requests() -> list[Request]:
    """Every request of any frontend, each without its ``corevital_*`` arguments and waited for."""
    everything = (*mixed(), *mixed(choices=False, arguments=False, aborts=False))
    found = {request.name: replace(request, arguments={}, wrong=False) for request in everything}
    return [request for request in found.values() if not request.hangs_up]


def main(out_file: str, processor: str | None = None) -> None:
    from vllm import LLM

    engine: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 32, "enforce_eager": True}
    processors = [processor] if processor else None
    llm = LLM(str(MODEL), served_model_name=MODEL_NAME, logits_processors=processors, **engine)
    wanted = requests() if processor else reference_requests()
    answers = []
    for chat in (True, False):
        kind = [request for request in wanted if request.chat == chat]
        answers += _together(llm, chat, [request for request in kind if not request.wrong])
        for request in kind:
            if request.wrong:  # alone: one refusal refuses all that are sent with it
                try:
                    answers += _together(llm, chat, [request])
                except Exception as error:
                    answers.append(Answer(request.name, refused=str(error)))
    Path(out_file).write_text(json.dumps([answer.as_json() for answer in answers]))


def _together(llm: Any, chat: bool, requests: list[Request]) -> list[Answer]:
    from vllm import SamplingParams

    params = [SamplingParams(**request.params, extra_args=dict(request.arguments) or None) for request in requests]
    if chat:
        outputs = llm.chat([[{"role": "user", "content": one.prompt}] for one in requests], params, use_tqdm=False)
    else:
        outputs = llm.generate([one.prompt + "\n" for one in requests], params, use_tqdm=False)
    return [
        Answer(
            name=request.name,
            request_id=output.request_id,
            texts={completion.index: completion.text for completion in output.outputs},
            finish_reasons={completion.index: completion.finish_reason for completion in output.outputs},
            output_tokens=sum(len(completion.token_ids) for completion in output.outputs),
        )
        for request, output in zip(requests, outputs, strict=True)
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
