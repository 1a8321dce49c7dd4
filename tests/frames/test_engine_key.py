"""Processes of one deployment know each other's stamps and their hub; others do not."""

from __future__ import annotations

import os

import pytest

from corevital.frames import engine_key as keys
from corevital.frames.engine_key import engine_key, share

HUB = {"COREVITAL_HUB": "tcp://10.0.0.1:5760", "COREVITAL_HUB_KEY": "a long shared secret"}


def test_children_share_their_parents_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keys.VARIABLE, raising=False)
    with monkeypatch.context() as patch:
        patch.setenv(keys.VARIABLE, "")
        patch.delenv(keys.VARIABLE)
        share(headless=False)
        inherited = os.environ[keys.VARIABLE]
        share(headless=False)
        assert os.environ[keys.VARIABLE] == inherited
        one = engine_key()
        patch.setenv(keys.VARIABLE, inherited)
        two = engine_key()
        patch.delenv(keys.VARIABLE)
    assert one == two
    assert one.hub.tcp is None
    assert not one.trusts_unproven
    assert one.proof("a" * 32) == two.proof("a" * 32) != one.proof("b" * 32)


def test_hosts_share_the_key_of_their_hub_and_of_no_other() -> None:
    one, two = engine_key(HUB), engine_key({**HUB, keys.VARIABLE: "f" * 64})
    assert one == two
    assert one.hub.tcp == HUB["COREVITAL_HUB"]
    for name, value in HUB.items():
        other = engine_key({**HUB, name: value + "1"})
        assert {one.hub.server, one.hub.secret, one.proof("a" * 32)}.isdisjoint(
            {other.hub.server, other.hub.secret, other.proof("a" * 32)}
        )


@pytest.mark.parametrize("given", ["", "f" * 62, "no hex", "f" * 64 + ":headless"])
def test_a_process_whose_frontend_may_have_another_key_believes_its_stamps(given: str) -> None:
    assert engine_key({keys.VARIABLE: given}).trusts_unproven


def test_without_a_key_tcp_is_not_used() -> None:
    assert engine_key({"COREVITAL_HUB": "tcp://10.0.0.1:5760"}).hub.tcp is None


def test_secrets_are_in_no_text() -> None:
    key = engine_key(HUB)
    for text in (repr(key), repr(key.hub), str(key)):
        assert key.key.hex() not in text
        assert key.hub.secret not in text
        assert key.hub.private.decode() not in text
