"""A session whose input is streamed, in real vLLM: ``python -m integration.harness.session OUT``.

The second input arrives after the first has been answered, the third while the second is being answered. Writes all
output tokens to OUT.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from integration.harness.vllm_server import MODEL, MODEL_NAME


async def run() -> list[int]:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.engine.protocol import StreamingInput
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True}
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(str(MODEL), served_model_name=MODEL_NAME, logits_processors=["corevital"], **arguments)
    )
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    tokens: list[int] = []

    async def inputs() -> AsyncGenerator[StreamingInput, None]:
        yield StreamingInput("Tell me a story about a baker.\n")
        while len(tokens) < params.max_tokens:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        yield StreamingInput("What is 1 + 1?\n")
        if "--queued" in sys.argv:
            yield StreamingInput("What is 2 + 2?\n")
        else:
            while len(tokens) < 2 * params.max_tokens:
                await asyncio.sleep(0.01)

    async for output in engine.generate(inputs(), params, "session"):
        tokens += output.outputs[0].token_ids
    engine.shutdown()
    return tokens


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(asyncio.run(run())))
