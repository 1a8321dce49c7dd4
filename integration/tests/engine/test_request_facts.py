"""What vLLM's frontend learns of a sequence from the engine's core, on vLLM's own classes."""

from __future__ import annotations

import dataclasses
import gc
import time
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from integration.harness.vllm_server import MODEL
from integration.tests.engine.test_frontend import Observer, configuration, request
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics import stats as vllm_stats
from vllm.v1.metrics.stats import IterationStats, PrefillStats

from corevital.engines.vllm import calls
from corevital.engines.vllm.frontend import attach
from corevital.engines.vllm.reasoning import ReasoningCounter, counter
from corevital.engines.vllm.tool_calls import ToolMarks, marks_of, tools_of
from corevital.frames.lifecycle import CoreFacts, Finished, Segment

START, END = 1001, 1002


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


class Scene:
    """A frontend that follows vLLM's output processor, and what it reported."""

    def __init__(self, tokenizer: Any = None, *, log_stats: bool = True, **wanted: Any) -> None:
        self.observer = Observer()
        self.processor = OutputProcessor(tokenizer, log_stats=log_stats)
        self.log_stats = log_stats
        assert attach(SimpleNamespace(output_processor=self.processor), configuration(), self.observer, **wanted)

    def add(self, params: SamplingParams | None = None, **fields: Any) -> None:
        queue: Any = SimpleNamespace(put=lambda output: None)
        self.processor.add_request(request("a", params, **fields), "a prompt", None, 0, queue)

    def step(self, tokens: list[int], reason: FinishReason | None = None, at: float = 0.0, **fields: Any) -> list[str]:
        """One step's output. Returns what the engine's core must abort."""
        sent = EngineCoreOutput(request_id="a", new_token_ids=tokens, finish_reason=reason, **fields)
        return self.processor.process_outputs([sent], at, IterationStats() if self.log_stats else None).reqs_to_abort

    @property
    def finished(self) -> Finished:
        ((_, outcome),) = self.observer.finished
        return outcome

    @property
    def core(self) -> CoreFacts:
        return self.finished.core


def events(*given: tuple[EngineCoreEventType, float]) -> list[EngineCoreEvent]:
    return [EngineCoreEvent.new_event(kind, at) for kind, at in given]


COUNTS_PREEMPTIONS = "num_preemptions" in {field.name for field in dataclasses.fields(vllm_stats.RequestStateStats)}
"""Older versions of vLLM count them in the core alone."""
QUEUED, SCHEDULED, PREEMPTED = EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED, EngineCoreEventType.PREEMPTED


def test_phases_and_preemptions_are_those_of_the_core() -> None:
    scene = Scene()
    scene.add()
    scene.step([1], at=14.0, events=events((QUEUED, 10.0), (SCHEDULED, 11.0)))
    scene.step([2], at=15.0, events=events((PREEMPTED, 14.5), (SCHEDULED, 14.75)))
    scene.step([3], FinishReason.LENGTH, at=22.0)
    core = scene.core
    assert (core.queue_s, core.prefill_s, core.decode_s) == (1.0, 3.0, 8.0)
    assert core.preemptions == (1 if COUNTS_PREEMPTIONS else None)


def test_a_request_that_ends_before_a_token_has_only_the_phases_it_came_to() -> None:
    scheduled, waiting = Scene(), Scene()
    scheduled.add()
    scheduled.step([], FinishReason.ABORT, at=14.0, events=events((QUEUED, 10.0), (SCHEDULED, 11.0)))
    assert (scheduled.core.queue_s, scheduled.core.prefill_s, scheduled.core.decode_s) == (1.0, None, None)
    waiting.add()
    waiting.processor.abort_requests(["a"], True)
    assert waiting.core == CoreFacts(preemptions=0 if COUNTS_PREEMPTIONS else None)


def test_times_of_a_sessions_parts_are_not_mixed() -> None:
    scene = Scene()
    scene.add()
    scene.step([1], at=12.0, events=events((QUEUED, 10.0), (SCHEDULED, 11.0)))
    scene.step([2], FinishReason.STOP, at=31.0, events=events((QUEUED, 30.0)))
    assert (scene.core.queue_s, scene.core.prefill_s, scene.core.decode_s) == (None, None, None)


def test_without_statistics_there_is_what_comes_with_the_outputs() -> None:
    scene = Scene(log_stats=False)
    scene.add(prompt_token_ids=list(range(20)))
    prefill = PrefillStats()
    prefill.set(20, 12, 4)
    scene.step([1], prefill_stats=prefill)
    scene.step([2], FinishReason.STOP, stop_reason=2)
    assert scene.core == CoreFacts(stop_reason="2", cached_tokens=16, cached_source="mixed")
    assert scene.finished.cached_tokens == 16


@pytest.mark.skipif(not hasattr(vllm_stats, "RequestSpecDecodeMetrics"), reason="this vLLM does not count them")
def test_accepted_drafts_are_counted() -> None:
    scene = Scene()
    scene.add(prompt_token_ids=list(range(20)))
    drafts = vllm_stats.RequestSpecDecodeMetrics.new(3)
    for accepted in (0, 2, 3, 3):
        drafts.observe(3, accepted)
    scene.step([2], FinishReason.STOP, spec_decode_metrics=drafts)
    assert scene.core.accepted_draft_tokens == 8


@pytest.mark.parametrize(("local", "external", "source"), [(4, 0, "local"), (0, 4, "external"), (0, 0, None)])
def test_cached_tokens_have_their_source(local: int, external: int, source: str | None) -> None:
    scene = Scene()
    scene.add(prompt_token_ids=list(range(20)))
    prefill = PrefillStats()
    prefill.set(20, local, external)
    scene.step([1], FinishReason.STOP, prefill_stats=prefill)
    assert (scene.core.cached_tokens, scene.core.cached_source) == (local + external, source)


def test_the_end_of_sequence_token_has_no_reason_and_a_repetition_has() -> None:
    ended, repeated = Scene(), Scene()
    ended.add()
    ended.step([1], FinishReason.STOP)
    assert ended.core.stop_reason is None
    repeated.add()
    repeated.step([1], FinishReason.REPETITION, stop_reason="repetition_detected")
    assert repeated.core.stop_reason == "repetition_detected"


@pytest.mark.parametrize(("content", "reason"), [(False, "stop_string"), (True, "forever")])
def test_a_stop_string_is_named_only_where_content_may_leave(tokenizer: Any, content: bool, reason: str) -> None:
    scene = Scene(tokenizer, content=content)
    scene.add(SamplingParams(stop=["never", "forever"]))
    tokens = tokenizer.encode("Say snow hop forever and ever", add_special_tokens=False)
    aborted = [name for token in tokens if scene.processor.request_states for name in scene.step([token])]
    assert aborted == ["a"], "the core does not know of it"
    assert (scene.finished.reason, scene.core.stop_reason) == ("stop", reason)


def test_a_request_with_stop_strings_ends_by_other_reasons_too(tokenizer: Any) -> None:
    scene = Scene(tokenizer)
    scene.add(SamplingParams(stop=["never"], stop_token_ids=[7]))
    scene.step([5])
    scene.step([7], FinishReason.STOP, stop_reason=7)
    assert scene.core.stop_reason == "7"


def test_what_notes_a_stop_string_does_not_hold_the_request(tokenizer: Any) -> None:
    gc.disable()
    try:
        scene = Scene(tokenizer)
        scene.add(SamplingParams(stop=["never"]))
        detokenizer = weakref.ref(scene.processor.request_states["a"].detokenizer)
        scene.step([5])
        scene.step([6], FinishReason.LENGTH)
        assert scene.core.stop_reason is None
        assert detokenizer() is None, "without the garbage collector"
    finally:
        gc.enable()


def test_an_error_in_the_facts_loses_no_end(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")
    monkeypatch.setattr("weakref.ref", None)
    scene = Scene(tokenizer)
    scene.add(SamplingParams(stop=["never"]))
    scene.processor.request_states["a"].stats.queued_ts = "no number"
    scene.processor.abort_requests(["a"], True)
    assert (scene.finished.reason, scene.core) == ("abort", CoreFacts())
    assert ReasoningCounter(START, END).count(3, None) is None  # type: ignore[arg-type]


def test_the_rank_is_the_one_that_the_client_asked_for() -> None:
    scene = Scene()
    scene.add(data_parallel_rank=1)
    scene.step([1], FinishReason.STOP)
    assert scene.core.data_parallel_rank == 1


@pytest.mark.parametrize(
    ("output", "prompt", "reasoning"),
    [
        ([START, 1, 2, 3, END, 4], [9], 3),
        ([1, 2, 3], [9], 0),
        ([], [START], 0),
        ([1, 2, END, 3], [9, START, 8], 2),  # the template began it
        ([1, 2, END, 3], [9], 2),  # the model leaves the first mark out
        ([1, 2, 3], [9, START, 8], 3),  # cut by the length limit
        ([START, 1, 2, END, 3], [9, START, 8], 2),  # both began it
        ([4, 5], [START, 8, END, 8], 0),  # the template turned it off
        ([4, START, 5, 6, END, 7, START, 8], [9], 3),  # between the calls of tools
        ([START, END], [9], 0),
        ([1, END], None, 1),
        ([1, 2], [START, *range(100)], 0),  # of an earlier turn
    ],
)
def test_reasoning_is_what_stands_between_the_marks(
    output: list[int], prompt: list[int] | None, reasoning: int
) -> None:
    assert ReasoningCounter(START, END).count(tuple(output), prompt) == reasoning


def test_reasoning_takes_microseconds() -> None:
    output, marks = tuple(range(10_000)), ReasoningCounter(START * 100, END * 100)
    begun = time.perf_counter()
    for _ in range(10):
        marks.count(output, range(100_000))
    assert (time.perf_counter() - begun) / 10 < 0.005


class Marked:
    """Stands in for the tokenizer of a model that reasons."""

    def __init__(self, *marks: str) -> None:
        self.vocabulary = {mark: START + at for at, mark in enumerate(marks)}

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def parsing(name: str) -> SimpleNamespace:
    return SimpleNamespace(**vars(configuration()), structured_outputs_config=SimpleNamespace(reasoning_parser=name))


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
def test_the_marks_are_those_of_vllms_parser(name: str) -> None:
    found = counter(parsing(name), Marked("<think>", "</think>"))
    assert found is not None
    assert found.count((START, 1, 2, END, 3), None) == 2


def test_it_counts_as_vllms_parser_does() -> None:
    from vllm.reasoning import ReasoningParserManager

    tokenizer: Any = Marked("<think>", "</think>")
    parser = ReasoningParserManager.get_reasoning_parser("deepseek_r1")(tokenizer)
    ours = counter(parsing("deepseek_r1"), tokenizer)
    assert ours is not None
    for output in ([START, 1, 2, END, 3], [4, 5], [START, 1], [1, START, 2, END, 3, START, 4, END]):
        assert ours.count(tuple(output), None) == parser.count_reasoning_tokens(output)


@pytest.mark.parametrize("name", ["", "no_such_parser", "deepseek_r1"])
def test_without_marks_nothing_is_counted(name: str) -> None:
    assert counter(parsing(name), Marked("<other>")) is None
    assert counter(parsing(name), None) is None


@pytest.mark.parametrize(("operation", "counted"), [("chat", 2), ("text_completion", None)])
def test_reasoning_is_counted_where_the_parser_reads_the_answer(operation: str, counted: int | None) -> None:
    scene = Scene()
    marks: Any = Marked("<think>", "</think>")
    scene.processor = OutputProcessor(None, log_stats=True)
    scene.processor.tokenizer = marks
    assert attach(SimpleNamespace(output_processor=scene.processor), parsing("deepseek_r1"), scene.observer)
    token = calls._call.set(calls.Call(calls.Entry("m", "C.f", operation)))
    try:
        scene.add()
    finally:
        calls._call.reset(token)
    state = scene.processor.request_states["a"]
    scene.step([START, 1, 2, END, 3], FinishReason.LENGTH)
    assert state.detokenizer.output_token_ids == [START, 1, 2, END, 3]
    assert scene.finished.reasoning_tokens == counted
    parts = (Segment("mark", 0, 1), Segment("reasoning", 1, 3), Segment("mark", 3, 4))
    assert scene.finished.segments == (parts if counted else ())
    (admitted,) = scene.observer.admitted
    assert admitted.segmented == bool(counted)


@pytest.mark.parametrize(
    ("name", "marks", "wanted"),
    [
        ("hermes", ("<tool_call>", "</tool_call>"), ToolMarks(START, END)),
        ("qwen3_xml", ("<tool_call>", "</tool_call>"), ToolMarks(START, END)),
        ("mistral", ("[TOOL_CALLS]",), ToolMarks(START, None)),
    ],
)
def test_the_marks_are_those_of_vllms_tool_parser(name: str, marks: tuple[str, ...], wanted: ToolMarks) -> None:
    from vllm.tool_parsers import ToolParserManager

    assert marks_of(ToolParserManager.get_tool_parser(name), Marked(*marks)) == wanted


def test_a_serving_object_of_vllm_has_its_tool_parser_where_we_look() -> None:
    from vllm.parser import ParserManager

    chosen = ParserManager.get_parser(tool_parser_name="hermes", enable_auto_tools=True)
    found = tools_of(SimpleNamespace(parser_cls=chosen), SimpleNamespace(tools=[{}], tool_choice="auto"))
    assert found is not None
    assert marks_of(found.parser, Marked("<tool_call>", "</tool_call>")) == ToolMarks(START, END)
