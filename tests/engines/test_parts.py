"""The parts of a chat answer, by the marks of parsers: on stand-ins for vLLM's serving objects and parsers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from corevital import log
from corevital.engines.vllm import calls
from corevital.engines.vllm.parts import Parts
from corevital.engines.vllm.reasoning import ReasoningCounter
from corevital.engines.vllm.tool_calls import ToolMarks, Tools, marks_of, tools_of

IDS = {"<think>": 1, "</think>": 2, "<tool_call>": 3, "</tool_call>": 4, "[TOOL_CALLS]": 5, "<calls>": 6, "</calls>": 7}
KINDS = {"reasoning": "r", "tool_call": "t", "mark": "|"}


class Tokenizer:
    def get_vocab(self) -> dict[str, int]:
        return IDS


class Parser:
    """Stands in for a tool parser that names its marks as most of them do."""

    tool_call_start_token: ClassVar[str] = "<tool_call>"
    tool_call_end_token: ClassVar[str] = "</tool_call>"

    def __init__(self, tokenizer: Any) -> None:
        assert tokenizer is not None


class Section(Parser):
    tool_calls_start_token: ClassVar[str] = "<calls>"
    tool_calls_end_token: ClassVar[str] = "</calls>"


class Bot:
    bot_token: ClassVar[str] = "[TOOL_CALLS]"

    def __init__(self, tokenizer: Any) -> None: ...


class Declared:
    """Stands in for a parser of vLLM's parser engine."""

    def __init__(self, tokenizer: Any) -> None:
        terminals = {"TOOL_START": ("<tool_call>", "<tool-call>"), "TOOL_END": "</tool_call>"}
        self._parser_engine = SimpleNamespace(parser_engine_config=SimpleNamespace(terminals=terminals))


class Strange:
    def __init__(self, tokenizer: Any) -> None: ...


class Odd:
    """Stands in for a parser with terminals of another shape."""

    made: ClassVar[int] = 0

    def __init__(self, tokenizer: Any) -> None:
        type(self).made += 1
        self._parser_engine = SimpleNamespace(parser_engine_config=SimpleNamespace(terminals=None))


class Demanding:
    def __init__(self, tokenizer: Any, request: Any) -> None: ...


@pytest.mark.parametrize(
    ("parser", "marks"),
    [
        (Parser, ToolMarks(3, 4)),
        (Section, ToolMarks(6, 7)),
        (Bot, ToolMarks(5, None)),
        (Declared, ToolMarks(3, 4)),
        (Strange, None),
        (Demanding, None),
        (Odd, None),
        (None, None),
    ],
)
def test_the_marks_of_a_tool_parser(parser: Any, marks: ToolMarks | None) -> None:
    assert marks_of(parser, Tokenizer()) == marks
    assert marks_of(parser, None) is None


def layout(found: tuple[Any, ...], length: int) -> str:
    letters = ["a"] * length
    for part in reversed(found):  # the first to name a token is right
        letters[part.start : part.end] = KINDS[part.kind] * (part.end - part.start)
    return "".join(letters)


def parts(
    tools: Tools | None, output: tuple[int, ...], *, reasons: bool, operation: str = "chat"
) -> tuple[int | None, str]:
    there = Parts(SimpleNamespace(), Tokenizer())
    there._reasoning = ReasoningCounter(1, 2) if reasons else None
    call = calls.Call(calls.Entry("m", "C.f", operation), tools)
    found = there.find(call, output, [9])
    assert found is not None
    assert there.expected(call) or found == (None, ())
    return found[0], layout(found[1], len(output))


CALLS = Tools(Parser, whole=False)


@pytest.mark.parametrize(
    ("tools", "output", "reasons", "wanted"),
    [
        (None, (1, 50, 51, 2, 52, 53), True, (2, "|rr|aa")),
        (None, (50, 51, 2, 52), True, (2, "rr|a")),
        (None, (1, 50, 51), True, (2, "|rr")),
        (None, (50, 51), True, (0, "aa")),
        (CALLS, (1, 50, 2, 51, 3, 52, 53, 4, 54), True, (1, "|r|a|tt|a")),
        (CALLS, (3, 52, 4, 3, 53, 54, 4), False, (None, "|t||tt|")),
        (CALLS, (51, 3, 52, 53), False, (None, "a|tt")),
        (CALLS, (1, 50, 3, 51, 2, 52, 3, 53, 4), True, (3, "|rrr|a|t|")),  # a mark within the reasoning is none
        (CALLS, (3, 4, 9), False, (None, "||a")),
        (Tools(Bot, whole=False), (51, 5, 52, 53), False, (None, "a|tt")),
        (Tools(Parser, whole=True), (1, 50, 2, 51, 52), True, (1, "|r|tt")),
        (Tools(None, whole=True), (50, 51), False, (None, "tt")),
        (Tools(None, whole=False), (50, 51), False, (None, "aa")),
        (None, (), True, (0, "")),
    ],
)
def test_the_parts_of_an_output(tools: Tools | None, output: tuple[int, ...], reasons: bool, wanted: Any) -> None:
    assert parts(tools, output, reasons=reasons) == wanted


def test_a_completion_has_no_parts() -> None:
    assert parts(CALLS, (1, 50, 2, 51), reasons=True, operation="text_completion") == (None, "aaaa")
    assert not Parts(SimpleNamespace(), Tokenizer()).expected(None)


def test_an_error_in_the_parts_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")
    there: Any = Parts(SimpleNamespace(), Tokenizer())
    there._reasoning = object()
    assert there.find(calls.Call(calls.Entry("m", "C.f", "chat")), (1, 2), None) is None


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", Tools(Parser, False)),
        (None, Tools(Parser, False)),
        ("required", Tools(Parser, True)),
        (SimpleNamespace(type="function", function="f"), Tools(Parser, True)),
        (SimpleNamespace(type="custom"), Tools(Parser, True)),
        (SimpleNamespace(type="any"), Tools(Parser, True)),
        (SimpleNamespace(type="tool"), Tools(Parser, True)),
        (SimpleNamespace(type="auto"), Tools(Parser, False)),
        (SimpleNamespace(type="allowed_tools"), Tools(Parser, False)),
        (SimpleNamespace(), Tools(Parser, False)),
        (SimpleNamespace(type=None), Tools(Parser, False)),
        ("none", None),
        (SimpleNamespace(type="none"), None),
    ],
)
@pytest.mark.parametrize("name", ["parser_cls", "parser"])
def test_the_tools_of_a_request(choice: Any, wanted: Tools | None, name: str) -> None:
    serving = SimpleNamespace(**{name: SimpleNamespace(tool_parser_cls=Parser)})
    assert tools_of(serving, SimpleNamespace(tools=[{}], tool_choice=choice)) == wanted
    assert tools_of(serving, SimpleNamespace(tools=None, tool_choice=choice)) is None
    assert tools_of(SimpleNamespace(), SimpleNamespace(tools=[{}])) == Tools(None, False)


def test_a_parser_that_reads_forced_calls_by_its_marks_does_so() -> None:
    parser = type("Structural", (Parser,), {"supports_required_and_named": False})
    serving = SimpleNamespace(parser_cls=SimpleNamespace(tool_parser_cls=parser))
    assert tools_of(serving, SimpleNamespace(tools=[{}], tool_choice="required")) == Tools(parser, False)


def test_harmony_has_marks_around_a_forced_call() -> None:
    parser = type("Harmony", (Parser,), {"structural_tag_model": "harmony"})
    serving = SimpleNamespace(parser_cls=SimpleNamespace(tool_parser_cls=parser))
    assert tools_of(serving, SimpleNamespace(tools=[{}], tool_choice="required")) == Tools(parser, False)


def test_an_odd_parser_is_read_once_and_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Odd, "made", 0)
    monkeypatch.setattr(log, "_logged", set())
    there = Parts(SimpleNamespace(), Tokenizer())
    for _ in range(3):
        assert not there.expected(calls.Call(calls.Entry("m", "C.f", "chat"), Tools(Odd, whole=False)))
    assert Odd.made == 1
    (line,) = caplog.messages
    assert line == "calls of tools are counted as answers: the marks of vLLM's tool parser Odd cannot be read"
