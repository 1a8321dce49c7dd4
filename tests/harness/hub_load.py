"""A process with a real hub and requests that end at a steady rate, to be killed: ``python -m tests.harness.hub_load``.

It has no engine: requests are admitted and finished without tokens. Settings and destination are those of the
environment. It writes the id of each finished request, one a line, and ends, with its hub closed, when its input does.
"""

from __future__ import annotations

import argparse
import os
import select
import time

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel.service.loop import Hub
from corevital_otel.settings import load


def finish_one(hub: Hub, name: str, sample: bool | None = None) -> None:
    """One request, from its admission to its end."""
    stamp = hub.admit(
        Admitted(request_id=name, engine_id=name, sequence=0, operation="chat", model="m", arrival_ns=time.time_ns(),
                 prompt_tokens=1, sample=sample)
    )  # fmt: skip
    if stamp is not None:
        hub.finish(stamp.key, Finished(reason="stop", token_ids=(), end_ns=time.time_ns()))


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", default="r", help="of the requests' ids")
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    parser.add_argument("--requests", type=int, default=10**9)
    given = parser.parse_args()
    hub = Hub(load())
    hub.start()
    begun = time.monotonic()
    done = 0
    while not select.select([0], [], [], 0.002)[0]:
        due = min(int((time.monotonic() - begun) * given.rate), given.requests)
        names = [f"{given.prefix}{number}" for number in range(done, due)]
        for name in names:
            finish_one(hub, name)
        if names:
            os.write(1, "".join(f"{name}\n" for name in names).encode())
        done = max(done, due)
    hub.close()


if __name__ == "__main__":
    main()
