"""Where nothing can be measured serving is unaffected, and one line gives the cause."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from corevital.engines.vllm import LogitsProcessor
from corevital.steps.device import can_serve, recorder_for
from corevital.steps.frame_thread import FrameThread
from corevital.steps.recorder import Recorder

Logged = Callable[[], list[logging.LogRecord]]
CONFIG = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 512))


@pytest.mark.parametrize("device", ["xpu", "hpu", "mps", "xla", "cuda"])
def test_a_device_that_cannot_be_served_is_declined_in_one_line(
    device: str, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr("corevital.log.configure", lambda: None)  # our handler would keep lines from the test's
    processor = LogitsProcessor(CONFIG, torch.device(device), False)
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

    monkeypatch.setattr("corevital.steps.device.warm_up", fail)
    monkeypatch.setattr("corevital.steps.device.make_current", lambda device: None)
    assert not can_serve(512, torch.device("cuda:0"))
    (line,) = (record.getMessage() for record in logged())
    assert str(error) in line
    assert "TRITON_CACHE_DIR" in line


def test_memory_on_a_gpu_is_taken_by_a_separate_thread_on_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's sleep mode unmaps what the thread that loads the model has allocated meanwhile."""
    calls: list[tuple[str, int, bool]] = []

    def note(name: str) -> None:
        calls.append((name, threading.get_ident(), torch.is_inference_mode_enabled()))

    monkeypatch.setattr("corevital.steps.device.make_current", lambda device: note(str(device)))
    monkeypatch.setattr("corevital.steps.device.warm_up", lambda vocab, **_: note("kernels"))

    def tables(*_: object) -> tuple[int, int]:
        note("tables")
        return 0, 0

    monkeypatch.setattr(Recorder, "warm_up", tables)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30))
    device = torch.device("cuda:1")
    with torch.inference_mode():
        assert can_serve(512, device)
        assert recorder_for(512, 4, 0.1, device, lambda step: None)
    assert [name for name, *_ in calls] == ["cuda:1", "kernels", "cuda:1", "tables"]
    assert threading.get_ident() not in {thread for _, thread, _ in calls}
    assert not any(inference for *_, inference in calls)


def build(*_: object, **__: object) -> None:
    """What Triton does for each new GPU and kernel: it compiles a C program and keeps it in its cache."""
    pytest.importorskip("triton").runtime.build.compile_module_from_src("int corevital;", "corevital")


@pytest.mark.parametrize("lack", ["C compiler", "cache"])
def test_what_triton_lacks_is_named_in_its_own_words(
    lack: str, logged: Logged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The causes are real ones; that a GPU's kernels are built is not."""
    cache = tmp_path / "cache"
    if lack == "C compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
    else:
        cache.touch()  # root may write into a folder whatever its mode is
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr("corevital.steps.device.warm_up", build)
    monkeypatch.setattr("corevital.steps.device.make_current", lambda device: None)
    monkeypatch.setattr("corevital.log.configure", lambda: None)
    processor = LogitsProcessor(CONFIG, torch.device("cuda:0"), False)
    logits = torch.randn(2, 512)
    processor.update_state(None)
    assert processor.apply(logits) is logits
    (line,) = (record.getMessage() for record in logged())
    assert line.startswith("nothing is measured: ")
    assert {"C compiler": "Failed to find C compiler", "cache": str(cache)}[lack] in line
    assert "\n" not in line
    assert not logged()[0].exc_info


@pytest.mark.parametrize("place", ["ring", "kernels"])
def test_a_start_without_memory_is_one_line_and_serving_is_unaffected(
    place: str, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 64.00 MiB.")

    threads = threading.active_count()
    monkeypatch.setattr("corevital.log.configure", lambda: None)
    where = "corevital.steps.recorder.tables_for" if place == "ring" else "corevital.steps.device.warm_up"
    monkeypatch.setattr(where, full)
    processor = LogitsProcessor(CONFIG, torch.device("cpu"), False)
    assert not processor.add_request(0, SimpleNamespace(extra_args=None))
    processor.update_state(None)
    logits = torch.randn(2, 512)
    assert processor.apply(logits) is logits
    (line,) = (record.getMessage() for record in logged())
    assert line.startswith("nothing is measured: ")
    assert "OutOfMemoryError" in line
    assert "\n" not in line
    assert not logged()[0].exc_info
    assert threading.active_count() == threads


def test_the_frame_thread_is_given_its_device_before_anything_else() -> None:
    seen: list[threading.Thread] = []
    sender = SimpleNamespace(send=lambda *_, **__: None, drop=lambda *_: None, close=lambda: None)
    frame_thread = FrameThread(sender, lambda: seen.append(threading.current_thread()))
    frame_thread.close()
    assert [thread.name for thread in seen] == ["corevital-frames"]
