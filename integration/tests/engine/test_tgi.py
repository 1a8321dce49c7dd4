"""The adapter of TGI on a stand-in for its server (tests/harness/tgi), with the scenarios of ``make test-tgi``.

What is real: the adapter, the recorder, frames, hub, reports and, in one test, the hub process and the ``.pth`` file.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from corevital.engines.tgi import engine, hooks
from corevital.engines.tgi.engine import Running
from corevital.entry import Telemetry
from corevital_otel.report import RequestReport
from corevital_otel.service.outputs import Outputs
from corevital_otel.store.content import Content

ROOT = Path(__file__).parents[3]
STAND_IN = ROOT / "tests/harness/tgi/server"
LIVENESS = 2**64 - 1
ALL = ("one", "two", "join", "abort", "stop", "health", "trace", "error")
REASONS = {
    "FINISH_REASON_LENGTH": "length", "FINISH_REASON_EOS_TOKEN": "stop", "FINISH_REASON_STOP_SEQUENCE": "stop",
    "abort": "abort", "error": "error",
}  # fmt: skip


class Context:
    """Stand-in for gRPC's: the metadata of a call."""

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata

    def invocation_metadata(self) -> Any:
        return self.metadata


class Served:
    """A shard that was started, the client that has driven it, and the reports of its requests."""

    def __init__(self, kind: str, **options: Any) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "text_generation_server"]:
            del sys.modules[name]
        client = importlib.reload(importlib.import_module("integration.tgi.shard_client"))
        module = {"CausalLM": "causal_lm", "Seq2SeqLM": "seq2seq_lm", "FlashCausalLM": "flash_causal_lm"}[kind]
        self.model = getattr(importlib.import_module(f"text_generation_server.models.{module}"), kind)(**options)
        server = importlib.import_module("text_generation_server.server")
        self.service = server.TextGenerationService(self.model, {}, ["unix://0"])
        self.scenarios = client.SCENARIOS
        self.reports: list[RequestReport] = []
        service = self.service

        class Shard(client.Shard):  # type: ignore[name-defined]
            def ask(self, method: str, message: Any, metadata: Any) -> Any:
                return asyncio.run(getattr(service, method)(message, Context(metadata)))

        self.client = Shard()

    def drive(self, *scenarios: str) -> list[dict[str, Any]]:
        self.client.warm_up()
        for name in scenarios:
            self.scenarios[name](self.client)
        return [seen for seen in self.client.seen.values() if seen["request"] != LIVENESS]

    def in_order(self) -> list[RequestReport]:
        """The reports, as the requests came."""
        return sorted(self.reports, key=lambda report: int(report.admitted.engine_id.rpartition("-")[2]))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """Starts a shard that is measured."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COREVITAL_DB", "")
    monkeypatch.syspath_prepend(str(STAND_IN))
    closes = []

    def start(kind: str, **options: Any) -> Served:
        served = Served(kind, **options)
        put = Outputs.put

        def noting(outputs: Outputs, report: RequestReport, content: Content | None) -> None:
            served.reports.append(report)
            put(outputs, report, content)

        monkeypatch.setattr(Outputs, "put", noting)
        close = Telemetry(engine).start(Running(served.service), {})
        assert close is not None
        closes.append(close)
        return served

    yield start
    for close in closes:
        close()
    monkeypatch.setattr(hooks, "_steps", None)


def drained(served: Served) -> list[RequestReport]:
    watch = served.service.Prefill.__closure__
    observer = next(c.cell_contents for c in watch if hasattr(c.cell_contents, "is_serving"))._observer
    assert observer.drain(20)
    return served.in_order()


PATHS = [
    ("CausalLM", {}, ALL),
    ("Seq2SeqLM", {}, ("one", "two", "join", "abort")),
    ("FlashCausalLM", {}, (*ALL, "chunks")),
    ("FlashCausalLM", {"speculate": 2}, ALL),
    ("FlashCausalLM", {"dtype": torch.float16}, ("one", "two", "join")),
    ("CausalLM", {"world_size": 2}, ("one", "two", "join", "abort")),
    ("FlashCausalLM", {"world_size": 2}, ("one", "two", "join")),
]


@pytest.mark.parametrize(("kind", "options", "scenarios"), PATHS)
def test_every_request_is_one_whole_report_and_no_token_changes(
    serve: Callable[..., Served], kind: str, options: dict[str, Any], scenarios: tuple[str, ...]
) -> None:
    served = serve(kind, **options)
    measured = served.drive(*scenarios)
    reports = drained(served)
    plain = Served(kind, **options).drive(*scenarios)
    if options.get("world_size", 1) == 1:  # else the client would have to ask every rank
        assert [(each["tokens"], each["end"]) for each in measured] == [(each["tokens"], each["end"]) for each in plain]
        assert [len(report.outcome.token_ids) for report in reports] == [len(each["tokens"]) for each in measured]
        assert [list(report.outcome.token_ids) for report in reports] == [each["tokens"] for each in measured]
        assert [report.outcome.reason for report in reports] == [REASONS[each["end"]] for each in measured]
    assert len(reports) == len(measured)
    for report, request in zip(reports, measured, strict=True):
        assert not report.incomplete
        assert report.features.tokens == len(report.outcome.token_ids)
        assert report.features.surprisal_estimated == 0, "each log-probability is of what the sampler saw first"
        truth = served.model.truth[request["request"]][: len(report.outcome.token_ids)]
        bits = -sum(truth) / len(truth) / 0.6931471805599453
        assert report.features.surprisal_mean == pytest.approx(bits, abs=1e-4)


def test_what_a_shard_cannot_know_is_absent(serve: Callable[..., Served]) -> None:
    served = serve("FlashCausalLM")
    served.drive("two", "join", "stop", "trace")
    reports = drained(served)
    assert {report.admitted.request_id for report in reports} == {""}
    assert {report.admitted.stream for report in reports} == {None}
    assert {report.admitted.traceparent for report in reports} == {None}
    assert {report.admission.parent for report in reports} == {None}
    assert {(report.admitted.engine, report.runner, report.stage) for report in reports} == {
        ("tgi", "flash", "post_penalty")
    }
    *others, last = reports
    assert last.admitted.batch == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert {report.admitted.batch for report in others} == {None}
    greedy, sampled = others[0].admitted, others[2].admitted
    assert (greedy.temperature, greedy.top_k, greedy.seed) == (None, None, None)
    assert (sampled.temperature, sampled.top_k, sampled.seed) == (0.7, 50, 7)
    assert greedy.prompt_tokens == len("import os")
    stopped = next(report for report in reports if report.outcome.reason == "stop")
    assert stopped.outcome.core.stop_reason == "stop_string", "the string itself is the client's"
    assert greedy.prompt_text is None


def test_the_warm_up_and_health_checks_are_nobody_s(serve: Callable[..., Served]) -> None:
    served = serve("CausalLM")
    assert served.drive("health") == []
    assert drained(served) == []


def test_accepted_drafts_are_counted(serve: Callable[..., Served]) -> None:
    served = serve("FlashCausalLM", speculate=2)
    (request,) = served.drive("one")
    (report,) = drained(served)
    assert len(request["tokens"]) == 8
    assert report.outcome.core.accepted_draft_tokens == 3, "1 token, 3 times 2, and 1 before the limit"


def test_a_prompt_that_cannot_be_read_is_counted(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    from corevital_otel.service.loop import Hub

    counted: list[int] = []
    monkeypatch.setattr(Hub, "unobserved", lambda self, sequences: counted.append(sequences))
    served = serve("CausalLM")
    served.client.warm_up()
    with pytest.raises(ValueError, match="an empty prompt"):
        served.client.prefill(served.client.batch(1, served.client.request(1, "")))
    assert counted == [1]
    served.scenarios["two"](served.client)
    assert len(drained(served)) == 2


def test_rows_without_memory_for_their_logits_are_counted_and_no_token_changes(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from corevital.steps.recorder import Recorder

    plain = Served("FlashCausalLM", speculate=2).drive("two", "join")
    lost: list[int] = []
    monkeypatch.setattr(Recorder, "copy", lambda self, logits: None)
    monkeypatch.setattr(Recorder, "lose", lambda self, owners, rows: lost.append(rows))
    served = serve("FlashCausalLM", speculate=2)
    assert [each["tokens"] for each in served.drive("two", "join")] == [each["tokens"] for each in plain]
    reports = drained(served)
    assert len(reports) == len(plain)
    measured = sum(report.features.tokens for report in reports)
    assert lost
    assert sum(lost) + measured == sum(len(each["tokens"]) for each in plain)


def test_nothing_is_kept_of_requests_that_the_hub_refuses(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from corevital_otel.service.loop import Hub

    monkeypatch.setattr(Hub, "admit", lambda self, request: None)
    served = serve("CausalLM")
    served.drive("two", "join")
    (watch,) = (c.cell_contents for c in served.service.Prefill.__closure__ if hasattr(c.cell_contents, "is_serving"))
    assert (watch._live, watch._members) == ({}, {})


def test_an_error_of_ours_fails_no_request(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    from corevital.engines.tgi.steps import Steps
    from corevital.engines.tgi.watch import Watch

    monkeypatch.setenv("COREVITAL_RAISE", "0")
    plain = Served("FlashCausalLM").drive("two", "join")
    served = serve("FlashCausalLM")
    for owner, name in ((Steps, "_record"), (Watch, "adds"), (Watch, "_keep")):
        monkeypatch.setattr(owner, name, lambda *_: 1 / 0)
    assert [each["tokens"] for each in served.drive("two", "join")] == [each["tokens"] for each in plain]


PROGRAM = """
import json, sys, site
site.addsitedir(sys.argv[2])  # as Python's start does it for a folder with .pth files
from integration.tgi import shard_client
import asyncio
from text_generation_server import server
from text_generation_server.models.causal_lm import CausalLM
service = server.TextGenerationService(CausalLM(rank=int(sys.argv[3])), {}, [])
class Shard(shard_client.Shard):
    def ask(self, method, message, metadata):
        class Context:
            def invocation_metadata(self): return metadata
        return asyncio.run(getattr(service, method)(message, Context()))
shard = Shard()
shard.warm_up()
shard_client.SCENARIOS["two"](shard)
print("corevital.engines.tgi.hooks" in sys.modules)
"""


def started(tmp_path: Path, rank: int = 0, given: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A shard in its own process, in which only the ``.pth`` file calls us."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COREVITAL_", "OTEL_"))}
    env |= {"PYTHONPATH": f"{ROOT}/plugin:{ROOT}/otel:{ROOT}:{STAND_IN}", "RANK": str(rank)}
    env |= {"COREVITAL_HTTP": "none", **(given or {})}  # the default port may be another test's
    folder = tmp_path / "site"
    folder.mkdir(exist_ok=True)
    (folder / "corevital_attach.pth").write_text((ROOT / "plugin/corevital_attach.pth").read_text())
    command = [sys.executable, "-c", PROGRAM, "--json-output", str(folder), str(rank)]
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)


def shown(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """What TGI's launcher would show: level and text."""
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [(line["record"]["level"]["name"], line["text"]) for line in lines]


def test_a_shard_reports_through_its_hub_and_its_launcher(tmp_path: Path) -> None:
    from corevital_otel.store.reader import StoreReader

    store = tmp_path / "store.sqlite"
    done = started(tmp_path, 0, {"COREVITAL_ATTACH": "tgi", "COREVITAL_DB": str(store), "COREVITAL_RAISE": "1"})
    assert done.returncode == 0, done.stderr
    rows = StoreReader(store).list_reports()
    assert sorted((row.output_tokens, row.finish_reason) for row in rows) == [(4, "length"), (9, "length")]
    assert all(row.request_id.startswith("tgi-") for row in rows)
    assert not any("gen_ai.response.id" in row.summary or "corevital.incomplete" in row.summary for row in rows)
    ((level, text),) = shown(done)
    assert level == "INFO"
    assert "measures stand-in: tgi unknown, runner padded" in text
    assert "corevital" not in done.stderr


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"COREVITAL_ATTACH": "tgi", "COREVITAL_ENABLED": "0"}, None),
        ({"COREVITAL_ATTACH": "tgi2"}, "COREVITAL_ATTACH: unknown engine 'tgi2', ignored"),
        ({"COREVITAL_ATTACH": "tgi", "RANK": "1"}, None),
    ],
)
def test_a_shard_that_is_not_to_be_measured_serves(tmp_path: Path, given: dict[str, str], line: str | None) -> None:
    done = started(tmp_path, 0, given)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    found = shown(done)
    assert len(found) == (line is not None)
    assert line is None or line in found[0][1]


def test_a_tgi_without_a_name_that_we_use_serves(
    serve: Callable[..., Served], logged: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Served("CausalLM")
    tokens = importlib.import_module("text_generation_server.utils.tokens")
    monkeypatch.delattr(tokens.StoppingCriteria, "__call__")
    engine.register(Telemetry(engine))
    assert capsys.readouterr().err == (
        "corevital WARNING: nothing is measured: this TGI has no StoppingCriteria.__call__ with the parameters "
        "self, last_token, last_output; corevital measures TGI 3 and was checked on 3.3.7\n"
    )
    assert not hasattr(type(served.service).__init__, "_corevital")


def test_a_wrong_setting_ends_the_start_with_one_line(tmp_path: Path) -> None:
    done = started(tmp_path, 0, {"COREVITAL_ATTACH": "tgi", "COREVITAL_CAPTURE": "x"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("corevital: COREVITAL_CAPTURE")
