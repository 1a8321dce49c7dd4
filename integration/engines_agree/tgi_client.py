"""Sends requests to a shard of TGI, one at a time, as its router does. Run by the Python of TGI's environment.

    python tgi_client.py SOCKET JOB

JOB is JSON: a list of ``prompt``, ``penalty`` and ``max_tokens``. Prints the tokens of each answer as JSON.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path


def main(socket: str, job: str) -> None:
    shard = import_module("integration.tgi.shard_client").Remote(socket)
    shard.warm_up()
    for number, ask in enumerate(json.loads(Path(job).read_text()), 1):
        request = shard.request(number, ask["prompt"], ask["max_tokens"], repetition_penalty=ask["penalty"])
        shard.run(shard.prefill(shard.batch(number, request)))
    print(json.dumps([seen["tokens"] for seen in shard.seen.values()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
