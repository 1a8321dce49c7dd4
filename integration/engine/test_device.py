"""Where nothing can be measured serving goes on, and one line says why."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from corevital.engines.courier import Courier
from corevital.engines.device import can_serve
from corevital.engines.vllm import LogitsProcessor

Logged = Callable[[], list[logging.LogRecord]]
CONFIG = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 512))


@pytest.mark.parametrize("device", ["xpu", "cuda"])
def test_a_device_that_cannot_be_served_is_declined_in_one_line(
    device: str, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr("corevital.log.configure", lambda: None)  # our handler would keep lines from the test's
    processor = LogitsProcessor(CONFIG, torch.device(device), False)  # type: ignore[arg-type]
    processor.update_state(None)
    logits = torch.randn(2, 512)
    assert processor.apply(logits) is logits
    lines = [record.getMessage() for record in logged()]
    assert [line.startswith("nothing is measured: ") for line in lines] == [True], lines
    assert "\n" not in lines[0]
    assert not logged()[0].exc_info


@pytest.mark.parametrize("error", [RuntimeError("no C compiler"), PermissionError(30, "Read-only file system")])
def test_a_kernel_that_cannot_be_made_is_named(
    error: Exception, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("corevital.engines.device.warm_up", fail)
    assert not can_serve(512, torch.device("cuda:0"))
    (line,) = (record.getMessage() for record in logged())
    assert str(error) in line
    assert "TRITON_CACHE_DIR" in line


def test_the_couriers_thread_is_given_its_device_before_anything_else() -> None:
    seen: list[threading.Thread] = []
    sender = SimpleNamespace(send=lambda *_, **__: None, drop=lambda *_: None, close=lambda: None)
    courier = Courier(sender, lambda: seen.append(threading.current_thread()))
    courier.close()
    assert [thread.name for thread in seen] == ["corevital-courier"]
