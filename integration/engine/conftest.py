"""What is done for an accelerator is run on the CPU too: tables made by torch alone, where the logits are."""

from __future__ import annotations

import pytest

from corevital.engines import emitter


@pytest.fixture(params=["host", "device"])
def tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the emitter takes the logits to be."""
    where: str = request.param
    if where == "device":
        monkeypatch.setattr(emitter, "by_address", lambda device: None)
    return where
