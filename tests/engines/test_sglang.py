"""SGLang's adapter without SGLang: whether it attaches, what travels, and each sequence's start and end.

``integration/tests/sglang`` runs it in real servers.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from corevital import attach, log
from corevital.engines.sglang import frontend, names, register, request_args, start
from corevital.engines.sglang.facts import Running
from corevital.engines.sglang.watch import Watch, carried
from corevital.frames.engine_key import VARIABLE
from corevital.frames.lifecycle import STOP_STRING, Admitted, Finished
from corevital.frames.stamp import Stamp

Logged = Callable[[], list[logging.LogRecord]]


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "configure", lambda: None)  # the log is read by pytest
    monkeypatch.setattr(register, "configure", lambda: None)
    before = dict(os.environ)
    os.environ.pop(VARIABLE, None)
    os.environ.pop(names.APP_PATH, None)
    os.environ[attach.VARIABLE] = "sglang"
    yield
    os.environ.clear()
    os.environ.update(before)


@dataclass
class Host:
    """Stands in for the telemetry half."""

    enabled: bool = True
    prepared: int = 0

    def prepare(self, own_traces: str | None = None) -> bool:
        self.prepared += 1
        return self.enabled

    def start(self, running: Running, env: Mapping[str, str]) -> None:
        raise AssertionError

    def core(self, running: Running) -> None:
        raise AssertionError


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The targets of each call that hooks some."""
    calls: list[list[str]] = []
    monkeypatch.setattr(register, "_hook", lambda host, targets: calls.append(list(targets)))
    return calls


def standing_in(monkeypatch: pytest.MonkeyPatch, version: str = "0.5.23", lacking: str | None = None) -> None:
    """An installed SGLang of this version that lacks a name."""
    monkeypatch.setattr(names, "version", lambda: version)
    monkeypatch.setattr(names, "missing", lambda targets: lacking)


def test_without_the_setting_nothing_is_hooked_or_checked(hooked: list[list[str]]) -> None:
    os.environ.pop(attach.VARIABLE)
    host = Host()
    register.register(host)
    assert (hooked, host.prepared, VARIABLE in os.environ) == ([], 0, False)


def test_the_first_process_checks_and_its_children_follow(
    monkeypatch: pytest.MonkeyPatch, hooked: list[list[str]], logged: Logged
) -> None:
    standing_in(monkeypatch)
    host = Host()
    register.register(host)
    assert hooked == [list(names.NEEDED)]
    assert os.environ[names.APP_PATH] == "corevital.engines.sglang.workers:app"
    register.register(host)  # as in a child: none of SGLang's modules is loaded here
    assert (hooked[1:], host.prepared, logged()) == ([[]], 1, [])


def test_the_user_s_own_app_stays(monkeypatch: pytest.MonkeyPatch, hooked: list[list[str]]) -> None:
    standing_in(monkeypatch)
    os.environ[names.APP_PATH] = "mine:app"
    register.register(Host())
    assert os.environ[names.APP_PATH] == "mine:app"


@pytest.mark.parametrize(
    ("version", "lacking", "enabled", "line"),
    [
        ("0.5.18", None, True, "SGLang 0.5.18 has no SamplingObserver: it serves unobserved; install 0.5.19 or newer"),
        ("0.4.9.post1", None, True, "SGLang 0.4.9.post1 has no SamplingObserver: it serves unobserved"),
        ("0.5.23", "Scheduler.x", True, "SGLang 0.5.23 has no Scheduler.x: it serves unobserved; install a tested"),
        ("0.5.23", None, False, None),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_children_do_nothing(
    monkeypatch: pytest.MonkeyPatch,
    hooked: list[list[str]],
    logged: Logged,
    version: str,
    lacking: str | None,
    enabled: bool,
    line: str | None,
) -> None:
    standing_in(monkeypatch, version, lacking)
    host = Host(enabled)
    register.register(host)
    register.register(host)  # as in a child
    assert (hooked, host.prepared) == ([], 1)
    assert [record.message[: len(line or "")] for record in logged()] == ([] if line is None else [line])


@pytest.mark.parametrize(("version", "lines"), [("0.5.23", 0), ("0.5.23rc0", 0), ("0.5.24", 1), ("0.6.0", 1), ("x", 1)])
def test_an_untested_version_is_logged_and_measured(
    monkeypatch: pytest.MonkeyPatch, hooked: list[list[str]], logged: Logged, version: str, lines: int
) -> None:
    standing_in(monkeypatch, version)
    register.register(Host())
    assert len(hooked) == 1
    assert len([record for record in logged() if "was not tested, only 0.5.23" in record.message]) == lines


def test_a_missing_module_or_method_is_named() -> None:
    assert names.missing(["os.PathLike.__fspath__"]) is None
    assert names.missing(["os.PathLike.other"]) == "PathLike.other"
    assert names.missing(["nowhere.Scheduler.start"]) == "Scheduler.start"


@pytest.mark.parametrize(
    ("pp_size", "supported", "line"),
    [(1, True, None), (1, False, "speculative decoding"), (2, True, "pipeline parallelism")],
)
def test_where_no_logits_are_shown_there_is_one_warning(
    logged: Logged, pp_size: int, supported: bool, line: str | None
) -> None:
    runner = SimpleNamespace(supports_sampling_observer=lambda: supported)
    scheduler = SimpleNamespace(
        server_args=SimpleNamespace(pp_size=pp_size), tp_worker=SimpleNamespace(model_runner=runner)
    )
    for _ in range(2):
        assert start.can_observe(Running(scheduler)) == (line is None)
    assert len(logged()) == (line is not None)
    assert line is None or line in logged()[0].message


def test_the_rank_that_answers_clients_reports() -> None:
    for channel, expected in ((object(), True), (None, False)):
        assert start.reports(Running(SimpleNamespace(recv_from_tokenizer=channel)))(0) is expected


@dataclass
class Hub:
    """Stands in for the hub: keeps what it receives."""

    admitted: list[Admitted] = field(default_factory=list)
    finished: dict[int, Finished] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)

    def admit(self, request: Admitted) -> Stamp | None:
        if request.sample is False:
            return None
        self.admitted.append(request)
        return Stamp("0" * 32, len(self.admitted))

    def finish(self, key: int, outcome: Finished) -> None:
        assert key not in self.finished
        self.finished[key] = outcome

    def internal(self, kind: str) -> None:
        self.kinds.append(kind)

    def unobserved(self, sequences: int) -> None:
        self.kinds += ["unobserved"] * sequences

    def drain(self, timeout_s: float) -> bool:
        return True


def params(**changes: Any) -> Any:
    given = {
        "custom_params": None, "top_k": names.TOP_K_ALL, "top_p": 1.0, "temperature": 0.5, "max_new_tokens": 8,
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "sampling_seed": None, "json_schema": None, "n": 1,
    }  # fmt: skip
    return SimpleNamespace(**{**given, **changes})


def request(rid: str = "r1", **changes: Any) -> Any:
    return SimpleNamespace(
        rid=rid, origin_input_ids=array("q", [1, 2, 3]), output_ids=array("q"), sampling_params=params(**changes),
        finished_reason=None, finished_len=None, stream=True, cached_tokens=2, retraction_count=1, time_stats=None,
    )  # fmt: skip


def reason(kind: str, matched: object = None) -> Any:
    return SimpleNamespace(to_json=lambda: {"type": kind}, matched=matched)


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def watch(hub: Hub) -> Watch:
    args = SimpleNamespace(served_model_name="tiny", model_path="/m", dp_size=1)
    return Watch(Running(SimpleNamespace(server_args=args)), hub, content=False, hash_key=None)


def test_a_sequence_is_admitted_and_finished_once(watch: Watch, hub: Hub) -> None:
    req = request()
    watch.adds(None, req)
    assert carried(req) == Stamp("0" * 32, 1)
    watch.began(req)
    req.output_ids.extend([5, 6, 7])
    watch.ends(None, [req])
    assert watch.measures, "it has not ended"
    req.finished_reason, req.finished_len = reason("stop", "the client's own"), 2
    for _ in range(2):  # overlap scheduling shows an ended request twice
        watch.ends(None, [req])
    (admitted,) = hub.admitted
    assert (admitted.request_id, admitted.model, admitted.stage) == ("r1", "tiny", "pre_grammar")
    assert (admitted.temperature, admitted.top_k, admitted.stream) == (0.5, None, True)
    outcome = hub.finished[1]
    assert (outcome.reason, list(outcome.token_ids)) == ("stop", [5, 6])
    assert outcome.first_chunk_s is not None
    assert (outcome.core.stop_reason, outcome.core.cached_tokens, outcome.core.preemptions) == (STOP_STRING, 2, 1)
    assert not watch.measures


def test_a_sequence_that_leaves_its_queue_is_finished(watch: Watch, hub: Hub) -> None:
    class AbortReq:
        rid = "r1"

    watch.adds(None, request())
    watch.aborted(None, None, SimpleNamespace(rid="r1"))
    assert not hub.finished
    for _ in range(2):
        watch.aborted(None, None, AbortReq())
    assert hub.finished[1].reason == "abort"
    assert list(hub.finished[1].token_ids) == []


def test_what_runs_at_the_end_is_finished(watch: Watch, hub: Hub) -> None:
    watch.adds(None, request())
    watch.close()
    assert hub.finished[1].reason == "abort"


def test_sequences_that_serve_no_client_are_counted(watch: Watch, hub: Hub) -> None:
    watch.adds(None, request("HEALTH_CHECK_1"))
    watch.adds(None, request(max_new_tokens=0))
    watch.adds(None, request(max_new_tokens=0, custom_params={frontend.KEY: {"internal": "warm_up"}}))
    assert (hub.kinds, hub.admitted) == (["warm_up", "scoring", "warm_up"], [])


def test_a_beam_search_is_not_measured(watch: Watch, hub: Hub) -> None:
    req = request()
    req.beam_group = object()
    watch.adds(None, req)
    assert (hub.kinds, hub.admitted, watch.measures) == (["unobserved"], [], False)


def test_a_rank_without_a_watch_takes_out_what_the_frontend_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "watches", [])
    req = request(custom_params={"mine": 1, frontend.KEY: {"id": "x"}})
    register._added(None, req)
    assert req.sampling_params.custom_params == {"mine": 1}


@pytest.mark.parametrize(("given", "expected"), [(None, None), ({}, {}), ({"a": 1}, {"a": 1, frontend.KEY: {}})])
def test_a_client_s_own_processor_sees_a_dict_only_where_the_client_sent_one(given: Any, expected: Any) -> None:
    frontend._call.set(None)
    sent = tokenized("r1", custom_params=given)
    sent.custom_logit_processor = "its code"
    frontend.sent(None, sent)
    assert sent.sampling_params.custom_params == expected


def test_temperature_0_is_what_the_client_asked_for(watch: Watch, hub: Hub) -> None:
    watch.adds(None, request(top_k=1, temperature=1.0))
    assert (hub.admitted[0].temperature, hub.admitted[0].top_k) == (0.0, None)


def test_arguments_are_read_and_ours_taken_out(watch: Watch, hub: Hub, logged: Logged) -> None:
    origin = {"id": "first", "sequence": 1, "choices": 2, "operation": "chat", "traceparent": "nonsense"}
    req = request(custom_params={"mine": 1, "corevital_tags": "a", "corevital_capture": "x", frontend.KEY: origin})
    watch.adds(None, req)
    admitted = hub.admitted[0]
    assert (admitted.request_id, admitted.sequence, admitted.choices) == ("first", 1, 2)
    assert (admitted.operation, admitted.tags, admitted.capture, admitted.traceparent) == ("chat", ("a",), None, None)
    assert req.sampling_params.custom_params == {"mine": 1, "corevital_tags": "a", "corevital_capture": "x"}
    assert len(logged()) == 1, "the wrong argument, where nothing can be refused any more"


@pytest.mark.parametrize(
    "forged", ["text", 5, [], {}, {"id": 5, "sequence": -1, "choices": "x", "arrival_ns": 2**80, "model": None}]
)
def test_what_a_client_puts_in_our_place_fails_nothing(watch: Watch, hub: Hub, forged: object) -> None:
    req = request(custom_params={frontend.KEY: forged})
    watch.adds(None, req)
    assert (hub.admitted[0].request_id, hub.admitted[0].sequence, hub.admitted[0].choices) == ("r1", 0, 1)
    assert req.sampling_params.custom_params is None


def test_a_sequence_that_is_not_kept_is_not_measured(watch: Watch) -> None:
    req = request(custom_params={"corevital_sample": 0})
    watch.adds(None, req)
    assert carried(req) is None
    assert not watch.measures


def call(path: str, n: int = 1, headers: Mapping[str, str] | None = None) -> None:
    obj = SimpleNamespace(sampling_params={"n": n})
    frontend.called(None, obj, SimpleNamespace(url=SimpleNamespace(path=path), headers=headers or {}))


def tokenized(rid: str, **changes: Any) -> Any:
    return SimpleNamespace(rid=rid, sampling_params=params(**changes), return_logprob=False)


def test_the_sequences_of_an_openai_call_have_the_answer_s_id() -> None:
    call("/v1/chat/completions", 2, {"traceparent": "00-a"})
    fill, first, second = tokenized("r0", max_new_tokens=0), tokenized("r1"), tokenized("r2")
    shared = first.sampling_params = second.sampling_params
    for each in (fill, first, second):
        frontend.sent(None, each)
    assert fill.sampling_params.custom_params == {frontend.KEY: {"internal": "warm_up"}}
    one, two = (each.sampling_params.custom_params[frontend.KEY] for each in (first, second))
    assert [(about["id"], about["sequence"], about["operation"]) for about in (one, two)] == [
        ("r1", 0, "chat"), ("r1", 1, "chat"),
    ]  # fmt: skip
    assert one["traceparent"] == "00-a"
    assert shared.custom_params is None, "SGLang's own object is not changed"


def test_the_sequences_of_a_native_call_have_their_own_ids_and_a_client_s_text_is_replaced() -> None:
    call("/generate", 2)
    each = [tokenized(f"r{number}", custom_params={"mine": 1, frontend.KEY: "forged"}) for number in range(4)]
    frontend.sent_many(None, each)
    found = [one.sampling_params.custom_params for one in each]
    assert [one["mine"] for one in found] == [1] * 4
    assert [(one[frontend.KEY]["id"], one[frontend.KEY]["sequence"]) for one in found] == [
        ("r0", 0), ("r1", 1), ("r2", 0), ("r3", 1),
    ]  # fmt: skip


def test_an_embedding_is_left_alone() -> None:
    embedding = SimpleNamespace(rid="r", sampling_params=params())
    frontend.sent(None, embedding)
    assert embedding.sampling_params.custom_params is None


def test_a_wrong_argument_is_refused() -> None:
    wrong = SimpleNamespace(sampling_params={"custom_params": {"corevital_sample": 2}})
    with pytest.raises(ValueError, match=r"^custom_params: corevital_sample=2 is not allowed: use 0 or 1$"):
        frontend.validated(None, wrong, [1])
    frontend.validated(None, SimpleNamespace(sampling_params={"custom_params": "text"}), [1])
    frontend.validated(None, SimpleNamespace(sampling_params=None), [1])


def test_sglang_s_own_spans_keep_all_but_token_counts() -> None:
    own = {"gen_ai.usage.completion_tokens": 5, "gen_ai.request.id": "r"}
    assert frontend.without_usage(own) == {"gen_ai.request.id": "r"}


def test_what_sglang_cannot_do_is_logged_once(logged: Logged) -> None:
    for _ in range(2):
        assert request_args.read_valid({"corevital_stop_on": "loop"}).stop_on == ("loop",)
    request_args.read_valid({"corevital_stop_on": "none"})
    (said,) = logged()
    assert said.getMessage() == ("custom_params: corevital_stop_on has no effect: only vLLM can end a sequence early")
