"""A stamp names a server and a sequence, and a client cannot make it name anything else."""

import pytest

from corevital.frames import stamp as stamps
from corevital.frames.stamp import Stamp, parse


def test_a_stamp_survives_the_way_through_extra_args() -> None:
    stamp = Stamp("0123456789abcdef" * 2, 2**64 - 1)
    assert parse(str(stamp)) == stamp
    urgent = stamp._replace(base=7, urgent=True)
    assert parse(str(urgent)) == urgent


def test_a_stamp_brings_the_servers_secret_and_shows_it_nowhere_else() -> None:
    server, secret = "0123456789abcdef" * 2, "f" * 64
    stamp = Stamp(server, 7, 3, secret)
    assert parse(str(stamp)) == stamp
    assert stamps.secret_of(server) == secret
    assert secret not in f"{stamp!r} {[stamp]}"
    stamps.forget(server)
    for number in range(1000):
        stamps.remember(f"{number:032x}", secret)
    assert len(stamps._secrets) <= 256
    for number in range(1000):
        stamps.forget(f"{number:032x}")


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
        "a" * 32 + ".:1",
        "a" * 32 + "." + "a" * 63 + ":1",
        "a" * 32 + ":" + "1" * 17,
    ],
)
def test_anything_else_is_not_a_stamp(value: object) -> None:
    assert parse(value) is None
