"""Stop strings found in an aborted output's tokens, by the library that vLLM's frontends decode with."""

from __future__ import annotations

import logging
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from integration.tests.engine.test_frontend import request
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from vllm import SamplingParams
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

from corevital.frames.lifecycle import CoreFacts, Finished, StopRule
from corevital_otel.cli.demo import server
from corevital_otel.service import stop_strings
from corevital_otel.service.stop_strings import StopStrings, find_stop

DEMO = Path(server.__file__).parent / "model"
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
TEXTS = (
    "the end of the world",
    "日本語のテキスト。おわり",
    "naïve café — übermäßig",
    "🙂🙃👩‍👩‍👧 emoji",
    "a b\n\nc STOP d",
)


def byte_level() -> Tokenizer:
    """A byte-level BPE, as GPT-2's and Llama 3's are: most characters here take several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([AddedToken("<end>", special=True)])
    return made


def byte_fallback() -> Tokenizer:
    """As Llama 2's: words begin with a mark for the space, and rare characters are single bytes."""
    words = ["▁", "a", "b", "c", "▁a", "▁b", "END", "▁END", "."]
    vocabulary = {token: number for number, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    made = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    return made


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()
END = BYTE_LEVEL.token_to_id("<end>")


@pytest.fixture
def stops(tmp_path: Path) -> Callable[..., StopStrings]:
    def of(tokenizer: Tokenizer = BYTE_LEVEL, content: bool = True) -> StopStrings:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return StopStrings(str(tmp_path), None, content)

    return of


def aborted(token_ids: Sequence[int]) -> Finished:
    return Finished(reason="abort", token_ids=tuple(token_ids), end_ns=1, core=CoreFacts(queue_s=1.0))


def ids(text: str, tokenizer: Tokenizer = BYTE_LEVEL) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def in_full(tokenizer: Tokenizer, tokens: Sequence[int], rule: StopRule) -> tuple[str, int, str] | None:
    """The same by decoding everything again after each token: stop string, tokens, and the client's text."""
    shown = ""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[:count]), skip_special_tokens=rule.skip_special_tokens)
        if text.endswith(INCOMPLETE):
            continue
        known, shown = len(shown), text
        if count <= rule.min_tokens:
            continue
        found = []
        for number, stop in enumerate(rule.stop):
            ends = (end for end in range(known + 1, len(text) + 1) if text[:end].endswith(stop))
            found += [(end, number, stop) for end in ends]
        if found:
            end, _, stop = min(found)
            return stop, count, text[: end if rule.include_stop_str else end - len(stop)]
    return None


def test_an_aborted_output_with_a_stop_string_is_stopped_where_its_client_saw_it(
    stops: Callable[..., StopStrings],
) -> None:
    tokens = ids("one two STOP three")
    ended = stops().resolve(aborted(tokens), StopRule(stop=("STOP",)))
    assert (ended.reason, ended.text, ended.core) == ("stop", "one two ", CoreFacts(queue_s=1.0, stop_reason="STOP"))
    assert BYTE_LEVEL.decode(ended.token_ids).rstrip() == "one two STOP"
    assert tuple(tokens[: len(ended.token_ids)]) == ended.token_ids
    included = stops().resolve(aborted(tokens), StopRule(stop=("STOP",), include_stop_str=True))
    assert (included.text, included.token_ids) == ("one two STOP", ended.token_ids)
    quiet = stops(content=False).resolve(aborted(tokens), StopRule(stop=("STOP",)))
    assert (quiet.reason, quiet.core.stop_reason, quiet.text) == ("stop", "stop_string", None)
    assert quiet.token_ids == ended.token_ids


@pytest.mark.parametrize("stop", ["本語の", "。お", "é —", "👩‍👩‍👧", "🙂🙃", "d of th"])
def test_a_stop_string_may_lie_across_tokens_and_within_characters(
    stops: Callable[..., StopStrings], stop: str
) -> None:
    tokens = [token for text in TEXTS for token in ids(text)]
    ended = stops().resolve(aborted(tokens), StopRule(stop=(stop,)))
    expected = in_full(BYTE_LEVEL, tokens, StopRule(stop=(stop,)))
    assert expected is not None
    assert (ended.core.stop_reason, len(ended.token_ids), ended.text) == expected


def test_of_several_stop_strings_the_one_that_ends_first_counts(stops: Callable[..., StopStrings]) -> None:
    one_token = Tokenizer(models.WordLevel({"x": 0, "abc": 1, "d": 2}, unk_token="x"))
    one_token.decoder = decoders.Fuse()
    for rule, stop, text in (
        (("abc", "ab"), "ab", "x"),
        (("bc", "abc"), "bc", "xa"),
        (("abc", "bc"), "abc", "x"),
        (("abcd", "cd"), "abcd", "x"),
        (("cd", "d"), "cd", "xab"),
    ):
        ended = stops(one_token).resolve(aborted((0, 1, 2)), StopRule(stop=rule))
        assert (ended.core.stop_reason, ended.text) == (stop, text), rule


def test_text_of_the_first_tokens_ends_nothing(stops: Callable[..., StopStrings]) -> None:
    tokens = ids("a b\n\nc a b\n\nc")
    (first,) = [at for at, token in enumerate(tokens, 1) if in_full(BYTE_LEVEL, tokens[:at], StopRule(stop=("\n\n",)))][
        :1
    ]
    for least in range(len(tokens) + 1):
        rule = StopRule(stop=("\n\n",), min_tokens=least)
        ended, expected = stops().resolve(aborted(tokens), rule), in_full(BYTE_LEVEL, tokens, rule)
        assert (ended.reason == "stop") is (expected is not None)
        if expected is not None:
            assert len(ended.token_ids) == expected[1]
            assert (expected[1] == first) is (least < first), "else a later one"


def test_special_tokens_are_text_where_the_request_wants_them(stops: Callable[..., StopStrings]) -> None:
    tokens = [*ids("a b"), END, *ids("c")]
    assert stops().resolve(aborted(tokens), StopRule(stop=("<end>",))).reason == "abort"
    shown = stops().resolve(aborted(tokens), StopRule(stop=("<end>",), skip_special_tokens=False))
    assert (shown.reason, shown.text, len(shown.token_ids)) == ("stop", "a b", len(tokens) - 1)
    across = stops().resolve(aborted(tokens), StopRule(stop=("bc",)))
    assert (across.reason, across.text) == ("stop", "a ")


def test_a_space_before_the_first_word_is_there_as_behind_a_prompt(stops: Callable[..., StopStrings]) -> None:
    end = BYTE_FALLBACK.token_to_id("▁END")
    alone = stops(BYTE_FALLBACK).resolve(aborted((end,)), StopRule(stop=(" END",)))
    behind = stops(BYTE_FALLBACK).resolve(aborted((end,)), StopRule(stop=(" END",), prompt_end=(1, 2)))
    assert (alone.reason, behind.reason, behind.text) == ("abort", "stop", "")


def test_a_prompt_is_never_taken_for_the_output(stops: Callable[..., StopStrings]) -> None:
    half = ids("STOP") + ids("語")[:1]
    for prompt in (ids("STOP"), half, [END]):
        rule = StopRule(stop=("STOP",), prompt_end=tuple(prompt))
        assert stops().resolve(aborted(ids("more text")), rule).reason == "abort"


def test_an_abort_by_the_client_stays_one(stops: Callable[..., StopStrings]) -> None:
    for tokens in (ids("one two STO"), [END], [-1, 10**6, *ids("one")]):
        outcome = aborted(tokens)
        assert stops().resolve(outcome, StopRule(stop=("STOP",))) == outcome


def test_a_long_output_is_decoded_from_near_its_end(
    stops: Callable[..., StopStrings], monkeypatch: pytest.MonkeyPatch
) -> None:
    long, late = ids("日本語 " * 30_000), ids("the end STOP and more")
    started = time.monotonic()
    ended = stops().resolve(aborted([*long, *late]), StopRule(stop=("STOP",)))
    assert time.monotonic() - started < 5
    assert (ended.reason, ended.core.stop_reason, ended.text) == ("stop", "STOP", None)
    assert len(ended.token_ids) == len(long) + len(ids("the end STOP"))
    for begin in range(1, 12):  # the first token that is decoded begins, ends or is within a character
        monkeypatch.setattr(stop_strings, "_TOKENS", len(late) + begin)
        again = stops().resolve(aborted([*long, *late]), StopRule(stop=("STOP",)))
        assert again.token_ids == ended.token_ids


def test_what_takes_too_long_stays_an_abort_and_is_logged_once(
    stops: Callable[..., StopStrings], monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    monkeypatch.setattr(stop_strings, "_MOST_S", 0.0)
    tokens = [*ids("日本語 " * 100), *ids("STOP")]
    for _ in range(2):
        assert stops().resolve(aborted(tokens), StopRule(stop=("STOP",))).reason == "abort"
    (line,) = [record.getMessage() for record in logged()]
    assert line.startswith("decoding takes too long")


def test_the_demos_own_tokenizer() -> None:
    stops = StopStrings(str(DEMO), None, True)
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tokens = ids("Long ago a fisher lost a boat.\nThe end", tokenizer)
    ended = stops.resolve(aborted(tokens), StopRule(stop=("boat.\n",)))
    assert (ended.reason, ended.text) == ("stop", "Long ago a fisher lost a ")
    assert stops.decode_text(tokens) == "Long ago a fisher lost a boat.\nThe end"
    assert stops.decode_text([0, *tokens[:2]], skip_special_tokens=False) == "<s>" + tokenizer.decode(tokens[:2])


def test_a_tokenizer_is_found_in_the_cache_by_name_and_revision_and_nothing_connects_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("nothing may connect")

    monkeypatch.setattr(socket.socket, "connect", connect)
    model = tmp_path / "models--org--name"
    for revision, commit in (("main", "c" * 40), ("v2", "d" * 40)):
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / revision).write_text(commit)
    shutil.copy(DEMO / "tokenizer.json", model / "snapshots" / ("c" * 40))
    for name, revision, there in (
        ("org/name", None, True),
        ("org/name", "c" * 40, True),
        ("org/name", "v2", False),
        ("org/other", None, False),
        ("not a/valid/name", None, False),
    ):
        assert StopStrings(name, revision, False, str(tmp_path)).load() is there, (name, revision)
    assert len(logged()) == 3, "once for each model"


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"model": 1}'])
def test_a_tokenizer_without_a_readable_file_is_logged_once(
    tmp_path: Path, text: str | None, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    (tmp_path / "tekken.json").write_text("{}")  # Mistral's own
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    stops = StopStrings(str(tmp_path), None, True)
    for _ in range(2):
        assert stops.resolve(aborted((1, 2)), StopRule(stop=("x",))) == aborted((1, 2))
    (line,) = [record.getMessage() for record in logged()]
    assert ("has no tokenizer.json" if text is None else "cannot be read") in line
    assert "\n" not in line


STRINGS = st.text(st.sampled_from("ab ENDé語🙂\n"), min_size=1, max_size=4)
RULES = st.builds(
    StopRule,
    stop=st.lists(STRINGS, min_size=1, max_size=3).map(tuple),
    include_stop_str=st.booleans(),
    min_tokens=st.integers(0, 12),
    skip_special_tokens=st.booleans(),
)
TOKENS = st.lists(st.integers(0, END), max_size=60)
WRITTEN = st.lists(st.sampled_from([*"ab é語🙂\n", "END", "the end"]), max_size=30).map("".join)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.one_of(TOKENS, WRITTEN.map(ids)), RULES)
def test_token_by_token_is_as_decoding_everything_again(tokens: list[int], rule: StopRule) -> None:
    found = find_stop(BYTE_LEVEL, tokens, rule)
    assert (None if found is None else tuple(found)) == in_full(BYTE_LEVEL, tokens, rule)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.one_of(TOKENS, WRITTEN.map(ids)), RULES, st.one_of(TOKENS, WRITTEN.map(ids)))
def test_so_does_vllms_own_frontend(tokens: list[int], rule: StopRule, prompt: list[int]) -> None:
    assume(not BYTE_LEVEL.decode(prompt, skip_special_tokens=rule.skip_special_tokens).endswith(INCOMPLETE))
    one = replace(rule, stop=rule.stop[:1], prompt_end=tuple(prompt))
    params = SamplingParams(
        stop=list(one.stop),
        include_stop_str_in_output=one.include_stop_str,
        min_tokens=one.min_tokens,
        skip_special_tokens=one.skip_special_tokens,
        max_tokens=100,
    )
    asked = request("a", params, prompt_token_ids=prompt or None, prompt_embeds=None)
    theirs = FastIncrementalDetokenizer(SimpleNamespace(_tokenizer=BYTE_LEVEL), asked)
    stop = next((stop for token in tokens if (stop := theirs.update([token], False)) is not None), None)
    expected = None if stop is None else (stop, len(theirs.output_token_ids), theirs.output_text)
    found = find_stop(BYTE_LEVEL, tokens, one)
    assert (None if found is None else tuple(found)) == expected


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(WRITTEN, RULES)
def test_so_is_a_tokenizer_that_falls_back_to_bytes(text: str, rule: StopRule) -> None:
    tokens = ids(text.replace(" ", "▁"), BYTE_FALLBACK)
    found = find_stop(BYTE_FALLBACK, tokens, rule)
    assert (None if found is None else tuple(found)) == in_full(BYTE_FALLBACK, tokens, rule)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(TOKENS, RULES, TOKENS)
def test_and_so_are_the_last_tokens_alone(tokens: list[int], rule: StopRule, later: list[int]) -> None:
    expected = in_full(BYTE_LEVEL, tokens, rule)
    assume(expected is not None)
    _, count, _ = expected
    output = [*tokens[:count], *later]  # what a core that is aborted late has made
    least = len(output) - count + 24
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stop_strings, "_TOKENS", least)
        found = find_stop(BYTE_LEVEL, output, rule)
    assert found is not None
    assert (found.stop, found.tokens) == expected[:2]
