"""The backend goes away under load and comes back: no request waits for it, and every span arrives once or is known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.harness.faulty import Behaviour, grpc_receiver, http_receiver

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings
from corevital_otel.store.outbox import Outbox

DROPPED, EXPORTED = "corevital.telemetry.dropped", "corevital.telemetry.exported"


def serve(hub: Hub, numbers: range, pause_s: float) -> list[float]:
    """Requests one after the other; how long each was held by us, seconds."""
    took = []
    for number in numbers:
        start = time.perf_counter()
        stamp = hub.admit(
            Admitted(request_id=f"r{number}", engine_id="e", sequence=0, operation="chat", model="m",
                     arrival_ns=time.time_ns(), prompt_tokens=1)
        )  # fmt: skip
        assert stamp is not None
        hub.finish(stamp.key, Finished(reason="stop", token_ids=(), end_ns=time.time_ns()))
        took.append(time.perf_counter() - start)
        time.sleep(pause_s)
    return took


@pytest.mark.parametrize("wire", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("queue", ["2048", "64"])
def test_a_backend_that_is_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wire: str, queue: str
) -> None:
    import grpc

    monkeypatch.setattr("corevital_otel.otlp.delivery._PAUSES_S", (0.05, 0.2))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", queue)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", wire)
    receiver: Callable[..., object] = http_receiver if wire != "grpc" else grpc_receiver
    with receiver() as received:  # type: ignore[attr-defined]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        hub = Hub(Settings(db=tmp_path / "corevital.db"))
        hub.start()
        took = serve(hub, range(50), 0.002)
        received.does = Behaviour(cut=True, code=grpc.StatusCode.UNAVAILABLE)
        took += serve(hub, range(50, 450), 0.004)
        received.does = Behaviour()
        took += serve(hub, range(450, 500), 0.002)
        received.wait_for(
            lambda: hub.counters.get(EXPORTED, signal="traces") + hub.counters.get(DROPPED, what="span") == 500
        )
        hub.close()
    assert sorted(took)[-5] < 0.02, "nothing that a request waits for depends on the backend"
    times = Counter(span.span_id.hex() for span in received.spans)
    assert set(times.values()) == {1}
    assert len(times) == hub.counters.get(EXPORTED, signal="traces")
    with Outbox(tmp_path / "corevital.db") as box:
        waiting = [span.span_id for batch in box.batches(1000) for span in batch]
    assert not times.keys() & set(waiting)
    assert len(times) + len(waiting) == 500
    assert (hub.counters.get(DROPPED, what="span", why="queue_full") > 0) == (queue == "64")
