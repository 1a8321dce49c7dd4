"""Ids: none twice, in any thread or forked process."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from corevital_otel.spans.random_ids import RandomIds, random_id


def test_no_id_comes_twice_in_any_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = [one for part in pool.map(lambda _: [random_id(8) for _ in range(5000)], range(4)) for one in part]
    assert len(set(found)) == len(found) == 20_000
    assert all(0 < one < 2**64 for one in found)
    assert 2**96 < RandomIds().generate_trace_id() < 2**128


def test_a_forked_process_has_different_ids() -> None:
    random_id(8)
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, random_id(16).to_bytes(16, "big"))
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as child:
        assert int.from_bytes(child.read(), "big") != random_id(16)
    os.wait()
