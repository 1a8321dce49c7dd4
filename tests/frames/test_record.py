"""A frame comes out as it went in, and nothing else passes for one."""

import numpy as np
import pytest

from corevital.frames.record import ROW, SAMPLED, Frame, FrameError, decode, encode


def make_frame(rows: int = 3, sampled: int = 2) -> Frame:
    generator = np.random.default_rng(0)
    table = np.frombuffer(generator.bytes(rows * ROW.itemsize), ROW)
    tokens = np.frombuffer(generator.bytes(sampled * SAMPLED.itemsize), SAMPLED)
    return Frame(table, tokens, runner="v1", sender=2**64 - 1, dropped=5, sent_at=1.5)


@pytest.mark.parametrize(("rows", "sampled"), [(3, 2), (0, 1), (1, 0), (0, 0), (1024, 1024)])
def test_a_frame_survives_the_way(rows: int, sampled: int) -> None:
    frame = make_frame(rows, sampled)
    arrived = decode(encode(frame))
    assert arrived.rows.tobytes() == frame.rows.tobytes()
    assert arrived.sampled.tobytes() == frame.sampled.tobytes()
    assert (arrived.runner, arrived.sender, arrived.dropped, arrived.sent_at) == ("v1", 2**64 - 1, 5, 1.5)


def test_what_is_no_frame_is_refused() -> None:
    data = encode(make_frame())
    for wrong in (b"", b"CVF1", data[:-1], data + b"x", b"XXXX" + data[4:], data[:4] + b"\xff\xff" + data[6:]):
        with pytest.raises(FrameError):
            decode(wrong)
