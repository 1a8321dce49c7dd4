"""The monitor on real ``generate()`` calls of a small Llama with random weights; values against float64."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from opentelemetry import trace
from tests.harness.collector import collector
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation import GenerationMixin

from corevital.engines.transformers import Monitor

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/operate/engines/transformers.md"
PAD, ENDS = 0, [2, 3]
PROMPT = torch.tensor([[5, 6, 7, 8]])
BATCH = torch.tensor([[PAD, PAD, 5, 6], [9, 10, 11, 12], [PAD, 7, 8, 9]])


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5, bos_token_id=1, eos_token_id=ENDS, pad_token_id=PAD,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "COREVITAL_DB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def mask(prompts: torch.Tensor) -> torch.Tensor:
    return (prompts != PAD).long()


def run(model: Any, prompts: torch.Tensor, monitor: Monitor | None = None, **options: Any) -> Any:
    torch.manual_seed(1)
    if monitor is not None:
        options["logits_processor"] = [*monitor.processors, *options.get("logits_processor", [])]
    return model.generate(
        prompts, attention_mask=mask(prompts), return_dict_in_generate=True, output_logits=True, **options
    )


def answers(result: Any, length: int, ends: list[int]) -> list[list[int]]:
    """The tokens of each row up to its end, from what generate() returned."""
    return [until(row, ends) for row in result.sequences[:, length:].tolist()]


def until(row: list[int], ends: list[int]) -> list[int]:
    last = next((at for at, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: last + 1]


def check_values(report: Any, logits: list[torch.Tensor], tokens: list[int]) -> None:
    """Entropy, surprisal and margin of each token, against float64."""
    assert len(report.series) == len(tokens)
    for at, token in enumerate(tokens):
        logprobs = logits[at].double().log_softmax(-1)
        probs = logprobs.exp()
        first, second = probs.topk(2).values.tolist()
        bits = 1 / math.log(2)
        assert report.series.entropy[at] == pytest.approx(-float((probs * logprobs).sum()) * bits, abs=1e-3)
        assert report.series.surprisal[at] == pytest.approx(-float(logprobs[token]) * bits, abs=1e-3)
        assert report.series.margin[at] == pytest.approx(first - second, abs=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 0.7, "top_k": 20, "num_return_sequences": 3}]
)
def test_each_sequence_of_a_padded_batch_has_a_report_with_exact_values(model: Any, options: dict[str, Any]) -> None:
    with Monitor() as monitor:
        result = run(model, BATCH, monitor, max_new_tokens=24, **options)
        before = len(monitor.reports)
    reports = monitor.reports
    each = options.get("num_return_sequences", 1)
    expected = answers(result, BATCH.shape[1], ENDS)
    assert before == len(reports) == len(expected) == 3 * each
    assert len({len(tokens) for tokens in expected}) > 1, "rows of unequal length are what this test is about"
    for row, (report, tokens) in enumerate(zip(reports, expected, strict=True)):
        assert list(report.outcome.token_ids) == tokens
        assert not report.incomplete
        assert (report.admitted.engine, report.runner, report.stage) == ("transformers", "generate", "raw")
        assert report.admitted.sequence == row % each
        assert report.admitted.choices == each
        assert report.admitted.prompt_tokens == int(mask(BATCH)[row // each].sum())
        assert report.features.surprisal_estimated == 0, "each log-probability came with its token"
        ended = tokens[-1] in ENDS
        assert report.outcome.reason == ("stop" if ended else "length")
        assert report.outcome.core.stop_reason == (str(tokens[-1]) if ended else None)
        check_values(report, [step[row] for step in result.logits], tokens)
    assert len({report.admitted.request_id for report in reports}) == 3
    table = monitor.table()
    assert [row["output_tokens"] for row in table] == list(map(len, expected))
    assert [row["token"] for row in monitor.tokens()] == list(chain.from_iterable(expected))
    json.dumps(table)  # plain values
    assert pyarrow.Table.from_pylist(table).num_rows == len(table), "each column has one type, as a data frame's has"
    assert len({tuple(row) for row in table}) == 1
    assert {row["engine"] for row in table} == {"transformers"}


def test_both_end_tokens_end_a_sequence(model: Any) -> None:
    with Monitor() as monitor:
        result = run(model, BATCH.repeat(12, 1), monitor, max_new_tokens=60, do_sample=True, top_k=0)
    expected = answers(result, BATCH.shape[1], ENDS)
    assert [list(report.outcome.token_ids) for report in monitor.reports] == expected
    assert {report.outcome.core.stop_reason for report in monitor.reports} >= {"2", "3"}


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_p": 0.9, "num_return_sequences": 2}])
def test_tokens_are_the_same_without_a_monitor(model: Any, options: dict[str, Any]) -> None:
    alone = run(model, BATCH, max_new_tokens=20, **options)
    with Monitor() as monitor:
        watched = run(model, BATCH, monitor, max_new_tokens=20, **options)
    assert watched.sequences.tolist() == alone.sequences.tolist()
    assert all(ours.equal(theirs) for ours, theirs in zip(watched.logits, alone.logits, strict=True))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"generation_config": GenerationConfig(num_beams=3, max_new_tokens=4)}, "beam search"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
    ],
)
def test_what_has_no_row_for_each_sequence_is_refused_before_it_runs(
    model: Any, options: dict[str, Any], named: str
) -> None:
    with Monitor() as monitor:
        with pytest.raises(ValueError, match=named) as refused:
            run(model, PROMPT, monitor, **options)
        run(model, PROMPT, monitor, max_new_tokens=3)  # and the monitor still works
    assert "\n" not in str(refused.value)
    assert len(monitor.reports) == 1


def test_beam_search_without_the_monitor_s_processors_is_left_alone(model: Any) -> None:
    with Monitor() as monitor:
        model.generate(PROMPT, attention_mask=mask(PROMPT), num_beams=2, max_new_tokens=3)
    assert monitor.reports == []


class _Seventh(StoppingCriteria):
    """Ends row 0 at its seventh token."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[0] = input_ids.shape[1] >= BATCH.shape[1] + 7
        return done


def test_a_criterion_of_the_caller_ends_its_row_and_padding_is_not_measured(model: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": PAD, "suppress_tokens": [PAD]}
    with Monitor() as monitor:
        result = run(model, BATCH, monitor, stopping_criteria=StoppingCriteriaList([_Seventh()]), **options)
    assert result.sequences[0, -1] == PAD
    assert [len(report.outcome.token_ids) for report in monitor.reports] == [7, 12, 12]
    assert [report.outcome.reason for report in monitor.reports] == ["stop", "length", "length"]
    assert not any(report.incomplete for report in monitor.reports)


def test_a_stop_string_ends_its_row_where_padding_is_an_end_token() -> None:
    path = str(files("corevital_otel.cli.demo") / "model")
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    texts = [tokenizer.bos_token + text for text in ("Count from 20 to 24.\n", "Say snow hop forever.\n")]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    options = {"stop_strings": ["22"], "tokenizer": tokenizer, "pad_token_id": 1, "max_new_tokens": 20}
    with Monitor() as monitor:
        result = model.generate(**inputs, **options, logits_processor=monitor.processors)
    counted, other = monitor.reports
    tokens = list(counted.outcome.token_ids)
    assert tokenizer.decode(tokens).endswith("22")
    assert (counted.outcome.reason, counted.incomplete) == ("stop", False)
    after = result[0, inputs["input_ids"].shape[1] + len(tokens) :].tolist()
    assert after
    assert set(after) == {1}, "what follows is padding, and was not reported"
    assert len(other.outcome.token_ids) > len(tokens)


def test_an_encoder_and_decoder_is_measured_too() -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        initializer_factor=5.0,
    )
    model = T5ForConditionalGeneration(config).eval()
    with Monitor() as monitor:
        result = run(model, BATCH, monitor, max_new_tokens=6, eos_token_id=None)
    for row, report in enumerate(monitor.reports):
        assert report.admitted.prompt_tokens == int(mask(BATCH)[row].sum())
        assert list(report.outcome.token_ids) == result.sequences[row, 1:].tolist()
        check_values(report, [step[row] for step in result.logits], list(report.outcome.token_ids))


def test_calls_of_two_threads_take_turns(model: Any) -> None:
    prompts = [PROMPT, PROMPT + 20] * 3
    options: dict[str, Any] = {"max_new_tokens": 12}
    with Monitor() as monitor:
        options["logits_processor"] = monitor.processors
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(lambda each: model.generate(each, attention_mask=mask(each), **options), prompts))
    expected = sorted(until(result[0, PROMPT.shape[1] :].tolist(), ENDS) for result in results)
    assert sorted(list(report.outcome.token_ids) for report in monitor.reports) == expected
    assert not any(report.incomplete for report in monitor.reports)


def test_a_long_answer_is_whole(model: Any) -> None:
    with Monitor() as monitor:
        run(model, PROMPT, monitor, max_new_tokens=1500, eos_token_id=None, do_sample=True)
    (report,) = monitor.reports
    assert (len(report.series), report.incomplete) == (1500, False)


class _Flatten(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores / 3


def test_the_stage_is_raw_only_where_no_processor_comes_first(model: Any) -> None:
    with Monitor() as monitor:
        run(model, PROMPT, monitor, max_new_tokens=8, repetition_penalty=1.5)
        run(model, PROMPT, monitor, max_new_tokens=8, logits_processor=[_Flatten()])
        model.generate(
            PROMPT, attention_mask=mask(PROMPT), max_new_tokens=8, logits_processor=[_Flatten(), *monitor.processors]
        )
        scored = run(model, PROMPT, monitor, max_new_tokens=8, repetition_penalty=1.5, output_scores=True)
    assert [report.stage for report in monitor.reports] == ["post_penalty", "raw", "post_penalty", "post_penalty"]
    penalised = monitor.reports[3]
    check_values(penalised, [step[0] for step in scored.scores], list(penalised.outcome.token_ids))


class _Broken(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > 6:
            raise RuntimeError("of the caller")
        return scores


def test_a_failed_call_has_a_report_and_the_next_one_too(model: Any) -> None:
    with Monitor() as monitor:
        with pytest.raises(RuntimeError, match="of the caller"):
            run(model, PROMPT, monitor, max_new_tokens=9, logits_processor=[_Broken()])
        run(model, PROMPT, monitor, max_new_tokens=5)
    failed, whole = monitor.reports
    assert (failed.outcome.reason, len(failed.outcome.token_ids)) == ("error", 3)
    assert (len(whole.outcome.token_ids), whole.incomplete) == (5, False)


def test_generate_is_put_back_and_processors_outside_the_block_are_refused(model: Any) -> None:
    original = GenerationMixin.generate
    with Monitor() as monitor, Monitor():
        assert GenerationMixin.generate is not original
    assert GenerationMixin.generate is original
    with pytest.raises(RuntimeError, match="with Monitor"):
        run(model, PROMPT, monitor, max_new_tokens=3)


def test_a_wrong_setting_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="capture"):
        Monitor(capture="everything")
    monkeypatch.setenv("COREVITAL_SAMPLE_RATE", "many")
    with pytest.raises(ValueError, match="COREVITAL_SAMPLE_RATE"), Monitor():
        pass
    assert "corevital" not in GenerationMixin.generate.__module__


def test_a_disabled_monitor_measures_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_ENABLED", "0")
    with Monitor() as monitor:
        run(model, PROMPT, monitor, max_new_tokens=3)
    assert monitor.reports == []


def test_spans_and_rows_are_as_from_a_server(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with collector(tmp_path) as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.grpc)
        monkeypatch.setenv("COREVITAL_DB", str(tmp_path / "rows.db"))
        caller = trace.SpanContext(0xABC << 64, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
        with Monitor() as monitor, trace.use_span(trace.NonRecordingSpan(caller)):
            run(model, BATCH, monitor, max_new_tokens=6)
        spans = running.sink.wait_for(3)
    reports = {(report.admitted.request_id, report.admitted.sequence): report for report in monitor.reports}
    for span in spans:
        report = reports.pop((span.attributes["gen_ai.response.id"], 0))
        assert span.trace_id == f"{caller.trace_id:032x}"
        assert span.parent_id == f"{caller.span_id:016x}"
        assert span.attributes["corevital.engine"] == "transformers"
        assert span.attributes["corevital.logits.stage"] == "raw"
        assert span.attributes["gen_ai.usage.output_tokens"] == len(report.outcome.token_ids)
        assert span.attributes["corevital.entropy.mean"] == pytest.approx(report.features.entropy_mean)
        assert span.resource["corevital.engine.name"] == "transformers"
    assert not reports
    with sqlite3.connect(tmp_path / "rows.db") as store:
        assert store.execute("SELECT count(*) FROM reports").fetchone() == (3,)


def test_there_is_no_store_where_none_is_set(model: Any, tmp_path: Path) -> None:
    with Monitor() as monitor:
        run(model, PROMPT, monitor, max_new_tokens=3)
    assert len(monitor.reports) == 1
    assert not list(tmp_path.rglob("*.db"))


def test_the_page_s_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    space: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)  # noqa: S102 - text of this repository
    table = space["monitor"].table()
    assert len(table) == 4
    assert not any(row["incomplete"] for row in table)
    assert "35" in capsys.readouterr().out
