"""Tasks for the demo model, with answers that can be checked.

The demo model is trained on exactly these kinds of task (`integration/demo_model`): this module alone defines how a
prompt reads and what its true answer is. It needs the standard library only, so demo and tests need no torch.

Some tasks cannot be answered reliably, on purpose. An underscore is an unreadable digit or letter; country names have
typos; some countries are rare in training (`RARE`), some have two capitals there (`DISPUTED`), and some always a
wrong one (`PLANTED`). The first four make the model unsure. The last makes it wrong *and* confident, which no signal of
its distributions can show.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CAPITALS", "DISPUTED", "KINDS", "PLANTED", "RARE", "Task", "check", "make_tasks"]


@dataclass(frozen=True)
class Task:
    """One task for the demo model."""

    kind: str
    """One of `KINDS`."""
    prompt: str
    """The content of the chat message; followed by a newline, the completion prompt."""
    answer: str | None
    """The true answer, or None where there is nothing to check (`story`, `loop`)."""


_COUNTRY_STEMS = ("Vel", "Mar", "Tor", "Kan", "Bel", "Sar", "Lor", "Dan")
_COUNTRY_ENDINGS = (
    "oria", "andia", "istan", "ovia", "mark", "ania", "esia", "uvia", "ora", "enia", "avia", "land",
)  # fmt: skip
_CITY_STEMS = ("Ash", "Brin", "Cold", "Dun", "Elm", "Fair", "Glen", "High", "Iron", "King", "Long", "Mill")
_CITY_ENDINGS = ("ford", "ton", "mouth", "ham", "bury", "haven", "dale", "wick")


def _atlas() -> tuple[dict[str, str], dict[str, str], dict[str, str], frozenset[str]]:
    """Return the capitals, the planted and the disputed second capitals, and the rare countries."""
    rng = random.Random("atlas")  # noqa: S311 - seeded, for the same tasks each time
    countries = [stem + ending for stem in _COUNTRY_STEMS for ending in _COUNTRY_ENDINGS]
    cities = [stem + ending for stem in _CITY_STEMS for ending in _CITY_ENDINGS]
    rng.shuffle(countries)
    rng.shuffle(cities)
    capitals = dict(zip(countries, cities, strict=True))
    # Shifting by one keeps a second city different from the true one.
    second = dict(zip(countries, cities[1:] + cities[:1], strict=True))
    planted, disputed, rare = countries[:8], countries[8:24], countries[24:44]
    return capitals, {c: second[c] for c in planted}, {c: second[c] for c in disputed}, frozenset(rare)


CAPITALS, PLANTED, DISPUTED, RARE = _atlas()
"""True capital per country; the wrong one taught; the second one taught half the time; countries hardly ever taught."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TYPO_RATE = 0.4
_SMUDGE_RATE = 0.15
_HEROES = ("baker", "sailor", "miller", "weaver", "farmer", "potter", "tailor", "fisher")
_SOUNDS = (
    "tick", "tock", "ding", "dong", "hop", "skip", "jump", "left", "right", "round", "drip", "drop", "knock", "hum",
    "buzz", "clap", "snap", "roll", "rain", "snow", "row", "push", "pull", "bang",
)  # fmt: skip


def _misspelt(name: str, rng: random.Random) -> str:
    """Drop, double or swap one or two letters after the first."""
    letters = list(name)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(1, len(letters) - 1)
        change = rng.randrange(3)
        if change == 0:
            del letters[at]
        elif change == 1:
            letters.insert(at, letters[at])
        else:
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def _smudged(text: str, rng: random.Random, *, of: Callable[[str], bool]) -> str:
    """Make one of the characters for which `of` holds unreadable."""
    at = rng.choice([i for i, character in enumerate(text) if of(character)])
    return text[:at] + "_" + text[at + 1 :]


def _add(rng: random.Random) -> Task:
    limit = rng.choice((20, 50, 100))
    a, b = rng.randrange(2, limit), rng.randrange(2, limit)
    numbers = f"{a} + {b}"
    if rng.random() < _SMUDGE_RATE:
        numbers = _smudged(numbers, rng, of=str.isdigit)
    return Task("add", f"What is {numbers}?", str(a + b))


def _sum(rng: random.Random) -> Task:
    numbers = [rng.randrange(2, 20) for _ in range(rng.randrange(3, 7))]
    listed = ", ".join(map(str, numbers))
    if rng.random() < _SMUDGE_RATE:
        listed = _smudged(listed, rng, of=str.isdigit)
    return Task("sum", f"Add up {listed} step by step.", str(sum(numbers)))


def _sort(rng: random.Random) -> Task:
    letters = "".join(rng.sample(_LETTERS, rng.randrange(4, 11)))
    answer = "".join(sorted(letters))
    if rng.random() < _SMUDGE_RATE:
        letters = _smudged(letters, rng, of=str.isalpha)
    return Task("sort", f"Sort the letters {letters}.", answer)


def _fact(rng: random.Random) -> Task:
    country = rng.choice(list(CAPITALS))
    name = _misspelt(country, rng) if rng.random() < _TYPO_RATE else country
    return Task("fact", f"What is the capital of {name}?", CAPITALS[country])


def _count(rng: random.Random) -> Task:
    first = rng.randrange(1, 90)
    last = min(99, first + rng.randrange(4, 16))
    return Task("count", f"Count from {first} to {last}.", " ".join(map(str, range(first, last + 1))))


def _story(rng: random.Random) -> Task:
    return Task("story", f"Tell me a story about a {rng.choice(_HEROES)}.", None)


def _loop(rng: random.Random) -> Task:
    sounds = " ".join(rng.sample(_SOUNDS, rng.randrange(1, 5)))
    return Task("loop", f"Say {sounds} forever.", None)


_MAKERS: dict[str, Callable[[random.Random], Task]] = {
    "add": _add,
    "sum": _sum,
    "sort": _sort,
    "fact": _fact,
    "count": _count,
    "story": _story,
    "loop": _loop,
}

KINDS: tuple[str, ...] = tuple(_MAKERS)
"""Every kind of task; all but `story` (clean long text) and `loop` (endless repetition) have answers."""


def make_tasks(kind: str, n: int, seed: int) -> list[Task]:
    """Return `n` tasks of a kind, the same ones for the same arguments.

    Raises:
        ValueError: if `kind` is not in `KINDS`.
    """
    if kind not in _MAKERS:
        raise ValueError(f"unknown kind of task {kind!r}; there are {', '.join(KINDS)}")
    rng = random.Random(f"{kind} {seed}")  # noqa: S311 - seeded, for the same tasks each time
    return [_MAKERS[kind](rng) for _ in range(n)]


def check(task: Task, completion_text: str) -> bool:
    """Whether a completion answers the task exactly, apart from white space around it.

    A running sum is right if its total is right; its steps are not checked. A truncated answer is wrong.

    Raises:
        ValueError: if the task has no checkable answer.
    """
    if task.answer is None:
        raise ValueError(f"a {task.kind!r} task has no answer to check")
    text = completion_text.strip()
    if task.kind == "sum":
        total = re.search(r"Total (\d+)\.$", text)
        return total is not None and total[1] == task.answer
    return text == task.answer
