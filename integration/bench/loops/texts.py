# ruff: noqa: E501
"""Texts whose label is known: legitimate ones that repeat a structure, and loops.

All are written here or drawn with a fixed seed. A loop is a beginning and a part that is repeated up to a length limit.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Final

_FIRST: Final = [
    "Ada",
    "Boris",
    "Chen",
    "Dora",
    "Emil",
    "Farah",
    "Goran",
    "Hilde",
    "Ivan",
    "Jana",
    "Karl",
    "Lena",
    "Milan",
    "Nora",
    "Omar",
    "Petra",
    "Quinn",
    "Rita",
]
_LAST: Final = [
    "Abbot",
    "Baker",
    "Cohen",
    "Dietz",
    "Evans",
    "Fischer",
    "Gomez",
    "Huber",
    "Ito",
    "Jensen",
    "Kovacs",
    "Larsen",
    "Meyer",
    "Novak",
]
_CITIES: Final = [
    "Lisbon",
    "Athens",
    "Prague",
    "Warsaw",
    "Helsinki",
    "Riga",
    "Zagreb",
    "Bern",
    "Sofia",
    "Turin",
    "Porto",
    "Graz",
]
_THINGS: Final = [
    "kettle",
    "spade",
    "table lamp",
    "ladder",
    "blanket",
    "office chair",
    "tea pot",
    "rucksack",
    "torch",
    "bicycle pump",
]


def legitimate() -> dict[str, str]:
    """Texts as a good model writes them when it is asked to, by name. Each ends by itself."""
    draw = random.Random(11)

    def person() -> tuple[str, str]:
        return draw.choice(_FIRST), draw.choice(_LAST)

    def rows(count: int, row: Callable[[int], str], between: str = "\n", first: int = 1) -> str:
        return between.join(row(i) for i in range(first, first + count))

    def employee(i: int) -> str:
        first, last = person()
        return f'  {{"id": {i}, "first": "{first}", "last": "{last}", "city": "{draw.choice(_CITIES)}"}}'

    def insert(i: int) -> str:
        thing, price = draw.choice(_THINGS), draw.randint(3, 99)
        return f"INSERT INTO products (id, name, price, in_stock) VALUES ({i}, '{thing}', {price}.00, 1);"  # noqa: S608 - text of the test

    def log(i: int) -> str:
        level = draw.choice(["INFO", "INFO", "WARN", "ERROR"])
        message = draw.choice(["request served", "cache miss", "retrying", "connection closed"])
        return f"2025-03-0{1 + i % 9} 08:{i:02d}:{draw.randint(10, 59)} {level} worker-{draw.randint(1, 4)} {message}"

    def verse(what: str, sound: str) -> str:
        return (
            f"And on that farm he had a {what},\nE-I-E-I-O.\nWith a {sound}-{sound} here and a {sound}-{sound} there,\n"
            f"here a {sound}, there a {sound}, everywhere a {sound}-{sound}.\nOld MacDonald had a farm,\nE-I-E-I-O."
        )

    truth = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    return {
        "JSON records": "[\n" + rows(18, employee, ",\n") + "\n]",
        "JSON lights, all off": "[\n"
        + rows(14, lambda i: f'  {{"light": "hall-{i}", "on": false, "level": 0}}', ",\n")
        + "\n]",
        "JSON, one field a line": "[\n"
        + rows(10, lambda i: f'  {{\n    "port": {i},\n    "speed": null,\n    "state": "down"\n  }}', ",\n")
        + "\n]",
        "YAML services": "services:\n"
        + rows(9, lambda i: f"  - name: job{i}\n    command: run job{i}\n    retries: 3\n    timeout: 30s"),
        "YAML, same replicas": rows(12, lambda i: f"- host: node{i:02d}\n  role: worker\n  cpu: 4\n  memory: 16Gi"),
        "SQL inserts": rows(14, insert),
        "SQL columns": "CREATE TABLE answers (\n" + rows(24, lambda i: f"  q{i} INTEGER NOT NULL,") + "\n  total INTEGER\n);",
        "CSV readings": "day,min,max\n" + rows(30, lambda i: f"2025-06-{i:02d},{draw.randint(5, 15)},{draw.randint(16, 31)}"),
        "CSV of zeros": "id,a,b,c\n" + rows(20, lambda i: f"{i},0,0,0"),
        "hex dump, zeros": rows(10, lambda i: f"{i * 16:04x}: " + "00 " * 16 + " ................", first=0),
        "hex dump, bytes": rows(10, lambda i: f"{i * 8:04x}: " + " ".join(f"{draw.randint(0, 255):02x}" for _ in range(8))),
        "markdown table": "| city | visitors | rating |\n|---|---|---|\n"
        + rows(12, lambda i: f"| {_CITIES[i - 1]} | {draw.randint(100, 9999)} | {draw.randint(1, 5)} |"),
        "attendance table": "| name | Mon | Tue | Wed | Thu | Fri |\n|---|---|---|---|---|---|\n"
        + rows(14, lambda i: f"| {_FIRST[i]} | yes | yes | {draw.choice(['yes', 'no'])} | yes | yes |"),
        "truth table": "| p | q | r | p or (q and r) |\n|---|---|---|---|\n"
        + "\n".join(f"| {p} | {q} | {r} | {int(p or (q and r))} |" for p, q, r in truth),
        "HTML table": "<table>\n"
        + rows(12, lambda i: f"<tr><td>{i}</td><td>{draw.choice(_THINGS)}</td><td>${draw.randint(5, 80)}</td></tr>")
        + "\n</table>",
        "HTML options": "<select>\n" + rows(25, lambda i: f'  <option value="{i}">{i}</option>') + "\n</select>",
        "HTML empty cells": "<tr>\n" + rows(16, lambda i: '  <td class="empty"></td>') + "\n</tr>",
        "test output": rows(18, lambda i: f"tests/test_api.py::test_case_{i} PASSED [{100 * i // 18:3d}%]"),
        "test output, short": rows(20, lambda i: f"ok {i} - returns the expected value") + "\n# 20 passed",
        "server log": rows(16, log),
        "ping": rows(16, lambda i: f"64 bytes from 10.0.0.1: icmp_seq={i} ttl=64 time=0.{draw.randint(100, 999)} ms"),
        "counting": rows(100, str, ", "),
        "counting lines": rows(90, str),
        "times table": rows(25, lambda i: f"9 x {i} = {9 * i}"),
        "squares": rows(30, lambda i: f"{i}^2 = {i * i}"),
        "unit tests": rows(12, lambda i: f"def test_double_{i}():\n    assert double({i}) == {2 * i}", "\n\n"),
        "getters": rows(8, lambda i: f"    def get_{_THINGS[i].replace(' ', '_')}(self):\n        return self._items[{i}]", "\n\n", 0),
        "switch": rows(14, lambda i: f"    case {i}:\n        return names[{i}];"),
        "enum": "class Level(Enum):\n" + rows(24, lambda i: f"    LEVEL_{i} = {i}"),
        "green bottles": rows(
            9,
            lambda i: f"{11 - i} green bottles hanging on the wall,\nand if one green bottle should accidentally fall,\n"
            f"there'll be {10 - i} green bottles hanging on the wall.",
            "\n\n",
        ),
        "farm song": "\n\n".join(
            verse(*one) for one in (("cow", "moo"), ("pig", "oink"), ("duck", "quack"), ("sheep", "baa"), ("hen", "cluck"))
        ),
        "refrain": "\n\n".join(
            f"{line}\nOh, the river runs, the river runs,\nthe river runs down to the sea,\nand it carries my heart with it."
            for line in (
                "The morning came with frost and light, and nobody was there to see.",
                "My father's boat lay on the sand, its paint as grey as it could be.",
                "We counted stars until they paled, and you had nothing more to say.",
                "So write to me when winter ends, when all the swallows find their way.",
            )
        ),
        "litany": "\n".join(
            f"{what}, have mercy on us."
            for what in (
                "Lord of the harvest", "Keeper of the gate", "Light of the morning", "Father of the poor", "Hope of the sick",
                "Judge of the proud", "Friend of the stranger", "Maker of the hills", "King of the quiet", "Lamp of the lost",
            )
        ),
        "a line 20 times": "\n".join(["I must not be late for school."] * 20),
        "a word 40 times": " ".join(["thanks"] * 40),
        "cheers": "Hip hip hooray! " * 12 + "And three cheers for the cook.",
        "zeros": "[" + ",\n ".join("[" + ", ".join(["0"] * 8) + "]" for _ in range(8)) + "]",
        "diagonal": "\n".join(" ".join("5" if i == j else "0" for j in range(9)) for i in range(9)),
        "rulers": "-" * 160 + "\nRESULTS\n" + "=" * 160,
        "quiz": rows(20, lambda i: f"Q: Is {i + 6} even?\nA: {'Yes' if i % 2 == 0 else 'No'}.", first=0),
        "packing list": "\n".join(f"{i}. {thing}" for i, thing in enumerate(_THINGS * 2, 1)),
        "capitals": rows(12, lambda i: f"{i}. {_CITIES[i - 1]} is the capital or a large city of its country."),
        "addresses": rows(12, lambda i: f"{' '.join(person())}\n{draw.randint(1, 99)} Station Road\n{draw.choice(_CITIES)}", "\n\n"),
        "blank form": rows(12, lambda i: f"{i}. ______________"),
        "dates": rows(28, lambda i: f"February {i}: closed"),
    }  # fmt: skip


_OPENINGS: Final = (
    "A good answer to this question depends on what one wants to reach. There are three things to keep in mind.",
    "Once upon a time a miller lived beside a stream with his two sons, and each of them wanted to see the world.",
    "Here is the list that you asked for, in no particular order, with a short explanation of every item:\n",
    "def parse(line):\n    parts = line.split()\n    return parts[0], float(parts[1])\n\n\n",
)
_SENTENCES: Final = (
    " The",
    " and so on",
    "!",
    " The cat sat on the mat.",
    " I am not sure, but I think that it is true.",
    "\n- the use of renewable energy sources",
    " He went to the door and opened it, and there was nobody there.",
    " It is important to note that the results may vary with the conditions.",
    "\n    if x > 0:\n        return x",
    " She looked at him, and he looked at her, and neither of them knew what to say about the letter on the table.",
    "\n\nThe first step is to find out what the problem is. The second step is to find a solution to the problem.",
    "\nThe city is known for its museums, its parks and its old town, which attracts many visitors every year. In the "
    "summer there are concerts in the open air, and in the winter there is a market in front of the town hall.",
)


def exact_loops() -> list[tuple[str, str]]:
    """A beginning, and the part that repeats exactly: every combination."""
    return [(opening, part) for opening in _OPENINGS for part in _SENTENCES]


def near_loops() -> dict[str, str]:
    """Loops in which something changes from copy to copy, as the model wrote them up to its limit, by name."""
    draw = random.Random(5)
    words = ["red", "blue", "old", "new", "big", "small", "warm", "cold"]
    opening = _OPENINGS[2]

    def numbered(part: str, count: int, before: str = "") -> str:
        return opening + "\n".join(f"{before}{i}. {part}" for i in range(1, count + 1))

    return {
        "1. to be": numbered("to be", 90),
        "1. the dog": numbered("the dog", 90),
        "numbered, ten words": numbered("The use of technology in the classroom can help students.", 35),
        "numbered, a long sentence": numbered(
            "A person who is able to speak in public is more likely to find work and to keep it than one who is not.",
            18,
        ),
        "headings": numbered("Conclusion: it is best to ask a doctor.", 40, "## "),
        "steps": opening + "\n".join(f"Step {i}: Add the sugar and stir until it dissolves." for i in range(1, 36)),
        "a word changes": opening
        + "".join(f" The {draw.choice(words)} house stands at the end of the long road by the sea." for _ in range(30)),
        "a word, now and then": opening
        + "".join(
            f" We {'must' if i % 5 else 'may'} look at the whole of the problem before we decide." for i in range(30)
        ),
    }


def long_loops() -> list[tuple[str, str]]:
    """A beginning, and a part of 150 to 400 tokens that repeats."""
    cities = [f"{a} lies north of {b}, and the road between them is closed in winter." for a, b in pairwise(_CITIES)]
    people = [f"{_FIRST[i % 18]} {_LAST[(3 * i) % 14]} asked what {_THINGS[i % 10]} costs." for i in range(40)]
    return [
        (_OPENINGS[i % 4], "\n" + " ".join((cities + people)[:count]))
        for i, count in enumerate((9, 12, 16, 20, 24, 32))
    ]
