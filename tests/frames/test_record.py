"""A frame comes out as it went in, and nothing else passes for one."""

import numpy as np
import pytest

from corevital.frames.layout import ROW, SAMPLED, Frame, FrameError, FrameVersionError, Source, decode, encode

V1 = Source("vllm", "v1", "raw")


def make_frame(rows: int = 3, sampled: int = 2, source: Source = V1) -> Frame:
    generator = np.random.default_rng(0)
    table = np.frombuffer(generator.bytes(rows * ROW.itemsize), ROW)
    tokens = np.frombuffer(generator.bytes(sampled * SAMPLED.itemsize), SAMPLED)
    return Frame(table, tokens, source, sender=2**64 - 1, dropped=5, sent_at=1.5)


@pytest.mark.parametrize(("rows", "sampled"), [(3, 2), (0, 1), (1, 0), (0, 0), (1024, 1024)])
def test_a_frame_survives_the_way(rows: int, sampled: int) -> None:
    frame = make_frame(rows, sampled)
    arrived = decode(encode(frame))
    assert arrived.rows.tobytes() == frame.rows.tobytes()
    assert arrived.sampled.tobytes() == frame.sampled.tobytes()
    assert (arrived.source, arrived.sender, arrived.dropped, arrived.sent_at) == (frame.source, 2**64 - 1, 5, 1.5)


def test_what_is_not_a_frame_is_refused() -> None:
    data = encode(make_frame())
    for wrong in (b"", b"CVF1", data[:-1], data + b"x", b"XXXX" + data[4:], data[:4] + b"\xff\xff" + data[6:]):
        with pytest.raises(FrameError):
            decode(wrong)


@pytest.mark.parametrize(
    "source",
    [Source(), Source("tgi", "flash_causal_lm", "raw"), Source("x", "a.b+c-d", "pre_grammar"), Source(*["n" * 32] * 3)],
)
def test_a_frame_names_any_engine_runner_and_stage(source: Source) -> None:
    data = encode(make_frame(source=source))
    assert decode(data).source == source
    assert (len(data) - 3 * ROW.itemsize - 2 * SAMPLED.itemsize) % 8 == 0, "tables are aligned"


@pytest.mark.parametrize("wrong", ["", "two words", "n" * 33, "zü", "line\n"])
def test_a_name_that_is_not_short_and_plain_is_refused(wrong: str) -> None:
    for place in range(3):
        with pytest.raises(ValueError, match="each name"):
            encode(make_frame(source=Source()._replace(**{Source._fields[place]: wrong})))


@pytest.mark.parametrize(
    "names", [b"vllm v1 ", b"vllm v1 raw x   ", b" v1 raw ", b"vllm v1 r\xffw     ", b"vllm v1 r\nw     "]
)
def test_names_that_are_not_those_of_a_source_are_not_a_frame(names: bytes) -> None:
    data = encode(make_frame())
    assert data[40:56] == b"vllm v1 raw     "
    begin = data[:6] + len(names).to_bytes(2, "little") + data[8:40]
    with pytest.raises(FrameError, match="does not name"):
        decode(begin + names + data[56:])
    with pytest.raises(FrameError, match="bytes of names"):
        decode(data[:6] + b"\x09\x00" + data[8:])


def test_a_frame_of_another_version_is_known_as_such() -> None:
    data = encode(make_frame())
    for version in (0, 1, 3, 2**16 - 1):
        with pytest.raises(FrameVersionError, match=f"version {version}, expected 2"):
            decode(data[:4] + version.to_bytes(2, "little") + data[6:])
