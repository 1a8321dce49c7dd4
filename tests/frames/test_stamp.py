"""A stamp names a server and a sequence, and a client cannot make it name anything else."""

import pytest

from corevital.frames.stamp import Stamp, parse


def test_a_stamp_survives_the_way_through_extra_args() -> None:
    stamp = Stamp("0123456789abcdef" * 2, 2**64 - 1)
    assert parse(str(stamp)) == stamp


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "",
        "tcp://10.0.0.1:80",
        "a" * 32,
        "a" * 32 + ":",
        "g" * 32 + ":1",
        "a" * 32 + ":1\n",
        "a" * 32 + ":" + "1" * 17,
    ],
)
def test_anything_else_is_no_stamp(value: object) -> None:
    assert parse(value) is None
