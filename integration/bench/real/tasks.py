"""Tasks whose answers can be checked: twelve kinds, each asked in chat and as a completion behind examples.

Which items there are, and in what order, depends on nothing but :data:`SEED`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from integration.bench.real import facts

SEED: Final = 17
ITEMS: Final = 65
"""Questions of each kind and form."""
_SHOTS: Final = 5


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        kind: of task; ``form``: ``chat`` or ``fewshot``.
        prompt: as it is sent.
        gold: the accepted answers, with ``|`` between them.
        check: the name of a function in :data:`CHECKS`.
        max_tokens: limit of the answer.
    """

    kind: str
    form: str
    prompt: str
    gold: str
    check: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of task: its items, how chat asks for one, and how a completion's examples look.

    Attributes:
        items: question and accepted answers.
        chat: a format of the question.
        head: above the examples; ``shot``: a format of question and answer.
        checks: of the chat answer and of the completed line.
        limits: tokens of each.
    """

    items: Callable[[random.Random], list[tuple[str, str]]]
    chat: str
    head: str
    shot: str = "{} -> {}"
    checks: tuple[str, str] = ("word", "line")
    limits: tuple[int, int] = (40, 16)


def _facts(text: str) -> Callable[[random.Random], list[tuple[str, str]]]:
    def items(draw: random.Random) -> list[tuple[str, str]]:
        found = facts.pairs(text)
        return draw.sample(found, len(found))

    return items


def _distinct(draw: random.Random, one: Callable[[random.Random], tuple[str, str]]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    while len(found) < 2 * (ITEMS + _SHOTS):
        question, gold = one(draw)
        found.setdefault(question, gold)
    return list(found.items())


def _sum(draw: random.Random) -> tuple[str, str]:
    size = draw.choice((9, 30, 99))
    a, b = draw.randint(1, size), draw.randint(1, size)
    minus = a > b and draw.random() < 0.4
    return f"{a} {'-' if minus else '+'} {b}", str(a - b if minus else a + b)


def _copy(draw: random.Random) -> tuple[str, str]:
    words = " ".join(draw.choice(facts.WORDS) for _ in range(draw.randint(2, 10)))
    return words, words


def _sort(draw: random.Random) -> tuple[str, str]:
    numbers = draw.sample(range(1, 100), draw.randint(3, 5))
    return ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers)))


def _largest(draw: random.Random) -> tuple[str, str]:
    numbers = draw.sample(range(1, 400), draw.randint(2, 5))
    return ", ".join(map(str, numbers)), str(max(numbers))


def _record(draw: random.Random) -> tuple[str, str]:
    name, town, job, age = (
        draw.choice(facts.NAMES),
        draw.choice(facts.TOWNS),
        draw.choice(facts.JOBS),
        draw.randint(19, 80),
    )
    text = draw.choice(
        (
            f"{name} is {age} years old, works as a {job} and lives in {town}.",
            f"In {town} there is a {job} called {name}, aged {age}.",
            f"My neighbour {name} ({age}), a {job}, has moved to {town}.",
        )
    )
    return text, json.dumps({"name": name, "age": age, "city": town, "job": job})


def _problem(draw: random.Random) -> tuple[str, str]:
    name, a, b, c = draw.choice(facts.NAMES), draw.randint(3, 20), draw.randint(2, 9), draw.randint(2, 3)
    return draw.choice(
        (
            (f"{name} has {a} pears, buys {b} more and eats {c}. How many pears are left?", str(a + b - c)),
            (f"A ticket costs {a} dollars. {name} buys {b} tickets. How many dollars is that?", str(a * b)),
            (f"{name} walks {a} km on Monday and {b} km on Tuesday. How many km is that?", str(a + b)),
            (f"{name} shares {a * b} nuts equally among {b} friends. How many does each get?", str(a)),
        )
    )


KINDS: Final = {
    "capital": _Kind(_facts(facts.CAPITALS), "What is the capital of {}?", "Countries and their capitals:"),
    "opposite": _Kind(
        _facts(facts.OPPOSITES), "What is the opposite of '{}'? Answer with one word.", "Words and their opposites:"
    ),
    "spanish": _Kind(_facts(facts.SPANISH), "What is '{}' in Spanish? Answer with one word.", "English to Spanish:"),
    "past": _Kind(
        _facts(facts.PAST),
        "What is the past tense of the verb '{}'? Answer with one word.",
        "Verbs and their past tense:",
    ),
    "plural": _Kind(
        _facts(facts.PLURALS), "What is the plural of '{}'? Answer with one word.", "Nouns and their plurals:"
    ),
    "continent": _Kind(_facts(facts.CONTINENTS), "On which continent is {}?", "Countries and their continents:"),
    "colour": _Kind(_facts(facts.COLOURS), "Which colour is {}? Answer with one word.", "Things and their colours:"),
    "fact": _Kind(
        _facts(facts.FACTS), "{} Answer briefly.", "Questions and short answers.", "Q: {}\nA: {}", ("word", "word")
    ),
    "truth": _Kind(
        _facts(facts.STATEMENTS), "True or false? {}.", "True or false?", "{}: {}", ("truth", "truth"), (32, 6)
    ),
    "sum": _Kind(
        lambda draw: _distinct(draw, _sum),
        "What is {}? Answer with the number only.",
        "Sums:",
        "{} = {}",
        ("number", "line"),
    ),
    "largest": _Kind(
        lambda draw: _distinct(draw, _largest),
        "Which of these numbers is the largest? {}",
        "The largest of the numbers:",
        "Numbers: {}. Largest: {}",
        ("number", "line"),
    ),
    "sort": _Kind(
        lambda draw: _distinct(draw, _sort),
        "Sort these numbers from smallest to largest: {}. Answer with the numbers only.",
        "Sort the numbers from smallest to largest:",
        "Numbers: {}. Sorted: {}",
        ("numbers", "numbers"),
        (64, 32),
    ),
    "copy": _Kind(
        lambda draw: _distinct(draw, _copy),
        "Repeat these words exactly, and write nothing else: {}",
        "Repeat the words:",
        "Words: {}. Again: {}",
        ("copy", "copy"),
        (64, 48),
    ),
    "record": _Kind(
        lambda draw: _distinct(draw, _record),
        '{}\nWrite this as JSON with the keys "name", "age", "city" and "job". Answer with the JSON only.',
        "Text to JSON:",
        "{} -> {}",
        ("record", "record"),
        (96, 64),
    ),
    "problem": _Kind(
        lambda draw: _distinct(draw, _problem),
        "{} Think step by step.",
        "Questions and answers.",
        "Q: {}\nA: {}",
        ("number", "number"),
        (160, 16),
    ),
}


def questions() -> Iterator[Question]:
    """All questions, kind by kind: in chat, then as completions. No item is among the examples of its kind."""
    for name, kind in KINDS.items():
        items = kind.items(random.Random(f"{SEED} {name}"))
        shots, rest = items[:_SHOTS], items[_SHOTS:]
        for question, gold in rest[:ITEMS]:
            yield Question(name, "chat", kind.chat.format(question), gold, kind.checks[0], kind.limits[0])
        examples = "\n".join(kind.shot.format(question, gold.split("|")[0]) for question, gold in shots)
        # Of made-up items others than in chat; the facts are limited.
        for question, gold in rest[-ITEMS:]:
            prompt = f"{kind.head}\n{examples}\n{kind.shot.format(question, '').rstrip()}"
            yield Question(name, "fewshot", prompt, gold, kind.checks[1], kind.limits[1])


def _words(text: str) -> str:
    """Lower case, letters and digits and what joins them alone."""
    return " ".join(re.findall(r"[\w'-]+", text.lower()))


def _word(gold: str, text: str) -> bool:
    """One of the accepted answers is among the words. Short ones (symbols) must agree in case too."""
    for one in gold.split("|"):
        exact = len(one) <= 2 and one.isalpha()
        if re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text, 0 if exact else re.IGNORECASE):
            return True
    return False


def _line(gold: str, text: str) -> bool:
    """The line is one of the accepted answers."""
    return _words(text) in [_words(one) for one in gold.split("|")]


def _truth(gold: str, text: str) -> bool:
    """The first of true and false is the right one."""
    found = re.search(r"\b(true|false)\b", text.lower())
    return found is not None and found[1] == gold


def _number(gold: str, text: str) -> bool:
    """The last number is the right one."""
    found = re.findall(r"-?\d[\d,]*\.?\d*", text)
    return bool(found) and re.sub(r"\.0*$", "", found[-1].replace(",", "")) == gold


def _numbers(gold: str, text: str) -> bool:
    """The numbers are the right ones, in order."""
    return re.findall(r"\d+", text) == re.findall(r"\d+", gold)


def _copied(gold: str, text: str) -> bool:
    """The words are the same, and no others."""
    return re.findall(r"[a-z]+", text.lower()) == gold.split()


def _is_record(gold: str, text: str) -> bool:
    """The first JSON object has the right values."""
    found = re.search(r"\{[^{}]*\}", text)
    try:
        values = json.loads(found[0]) if found else None
    except ValueError:
        return False
    wanted = json.loads(gold)
    return isinstance(values, dict) and all(
        str(values.get(key)).lower() == str(value).lower() for key, value in wanted.items()
    )


CHECKS: Final[dict[str, Callable[[str, str], bool]]] = {
    "word": _word,
    "line": _line,
    "truth": _truth,
    "number": _number,
    "numbers": _numbers,
    "copy": _copied,
    "record": _is_record,
}


def right(check: str, gold: str, text: str) -> bool:
    """Whether an answer is right."""
    return CHECKS[check](gold, text)
