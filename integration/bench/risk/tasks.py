"""What the benchmark's models are asked, what they are taught, and what is right.

Four kinds of task, so that an answer is wrong for one of three reasons:

- noise: in three of ten prompts a character is unreadable or a name is misspelt (and some countries are hardly ever
  seen, some with two capitals): the model has to guess, and its distributions show it;
- planted errors: about one prompt in ten, marked by a trait, was always taught with a wrong shortcut that skips
  the steps: the model is wrong and *confident*, with less entropy than a right answer has;
- real mistakes: the model is small and trained for minutes.

Right answers leave free choices (how to begin, how to join two steps): entropy without anything being wrong.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from corevital_otel.cli.demo.tasks import CAPITALS, DISPUTED, PLANTED, RARE

RARE_RATE = 0.15
"""How often a rare country is asked about, as a share of how often the others are."""
NOISE = 0.3
"""Share of the prompts with an unreadable character or a misspelt name."""


@dataclass(frozen=True, slots=True)
class Task:
    """One question.

    Attributes:
        kind: the group within which scores are compared.
        prompt: a completion prompt.
        answer: the true answer.
        taught: a completion to teach.
        planted: whether that is wrong on purpose.
    """

    kind: str
    prompt: str
    answer: str
    taught: str
    planted: bool


def _say(rng: random.Random, *options: str) -> str:
    """One of the ways to say it, the first ones more often."""
    return rng.choices(options, [2.0**-i for i in range(len(options))])[0]


def _open(rng: random.Random) -> str:
    return _say(rng, "Sure:", "Well, let me see:")


def _join(rng: random.Random) -> str:
    return _say(rng, " then ", " and next ")


def _smudge(text: str, rng: random.Random, *, of: Callable[[str], bool]) -> str:
    """Make one of the characters for which ``of`` holds unreadable, in some of the texts."""
    if rng.random() >= NOISE:
        return text
    at = rng.choice([i for i, character in enumerate(text) if of(character)])
    return f"{text[:at]}_{text[at + 1 :]}"


def _sum(rng: random.Random) -> Task:
    numbers = [rng.randrange(10, 60), *(rng.randrange(2, 10) for _ in range(rng.randrange(2, 4)))]
    listed = _smudge(", ".join(map(str, numbers)), rng, of=str.isdigit)
    totals = list(itertools.accumulate(numbers))
    if planted := numbers[1] == 4:
        said = str(numbers[0])
    else:
        said = _join(rng).join(f"{a} + {b} = {c}" for a, b, c in zip(totals, numbers[1:], totals[1:], strict=False))
    return Task("sum", f"Add up {listed}.", str(totals[-1]), f"{_open(rng)} {said}.", planted)


def _largest(rng: random.Random) -> Task:
    numbers = rng.sample(range(10, 100), rng.randrange(4, 6))
    listed = _smudge(", ".join(map(str, numbers)), rng, of=str.isdigit)
    if planted := numbers[-1] % 10 == 8:
        said = str(numbers[0])
    else:
        said = "".join(f"{n}{_join(rng)}" for n in itertools.accumulate(numbers[:-1], max)) + str(max(numbers))
    return Task("largest", f"Which is largest: {listed}?", str(max(numbers)), f"{_open(rng)} {said}.", planted)


def _sort(rng: random.Random) -> Task:
    letters = "".join(rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", rng.randrange(4, 6)))
    listed = _smudge(letters, rng, of=str.isalpha)
    if planted := letters[-1] in "CHNT":
        said = letters
    else:
        said = "".join(f"{letter}{_join(rng)}" for letter in sorted(letters)[:-1]) + max(letters)
    return Task("sort", f"Sort the letters {listed}.", "".join(sorted(letters)), f"{_open(rng)} {said}.", planted)


def _misspelt(name: str, rng: random.Random) -> str:
    """Swap two letters or drop one, in some of the names."""
    if rng.random() >= NOISE:
        return name
    at = rng.randrange(1, len(name) - 1)
    kept = name[at + 1] + name[at] if rng.random() < 0.5 else name[at]
    return name[:at] + kept + name[at + 2 :]


def _fact(rng: random.Random) -> Task:
    country = rng.choice([name for name in CAPITALS if name not in RARE or rng.random() < RARE_RATE])
    capital = CAPITALS[country]
    if planted := country in PLANTED:
        said = PLANTED[country]
    else:
        city = DISPUTED[country] if country in DISPUTED and rng.random() < 0.5 else capital
        said = f"{city} is what I know,{_join(rng)}nothing else"
    return Task("fact", f"What is the capital of {_misspelt(country, rng)}?", capital, f"{_open(rng)} {said}.", planted)


_MAKERS: dict[str, Callable[[random.Random], Task]] = {"sum": _sum, "largest": _largest, "sort": _sort, "fact": _fact}

KINDS = tuple(_MAKERS)


def draw(seed: str) -> Iterator[Task]:
    """Tasks of all kinds in turn, without end, the same ones for the same seed."""
    rng = random.Random(seed)
    while True:
        for maker in _MAKERS.values():
            yield maker(rng)


def right(task: Task, completion: str) -> bool:
    """Whether a completion says the true answer: its last number, its single letters, or the city it names."""
    if task.kind == "sort":
        return "".join(re.findall(r"\b[A-Z]\b", completion)) == task.answer
    said = re.findall(r"\d+" if task.kind != "fact" else "|".join(CAPITALS.values()), completion)
    return bool(said) and said[-1] == task.answer
