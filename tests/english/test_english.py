"""The words of ``words.toml`` are nowhere in what people read, and the checker finds each of them everywhere."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
from tests.english.check import EXCEPTIONS, PLACES, ROOT, WORDS, Word, check, files, hits

FILES = {
    "page.md": "# Title\n\n{}, in a paragraph\n",
    "wrapped.md": "# Title\n\nA long line before it\n{}\n",
    "table.md": "# Title\n\n| a | b |\n| --- | --- |\n| {} | `code` |\n",
    "comment.py": "x = 1\n\n# {}\ny = 2\n",
    "after.py": "x = 1\n\ny = '#'  # {}\n",
    "docstring.py": 'def f():\n    """First.\n\n    {}\n    """\n',
    "message.py": 'def f(x):\n    g(\n        f"{{x}} first: {}, {{x!r}}")\n',
    "rules.yml": "groups:\n  - alert: A\n    description: {}\n",
    "comment.yml": "a: 1\nb: 2\n# {}\n",
    "run.sh": "set -e\n\nls  # {}\n",
    "echo.sh": 'set -e\n\necho "first {}"\n',
    "Makefile": "all:\n\tls\n# {}\n",
    "settings.toml": "a = 1\n\n# {}\n",
}
"""Each kind of file with a place for a phrase, on line 3 or 4."""

CODE = {
    "names.py": "told = {'mend': 1}\nanew.told(whoever)\nmend['heard'] = told\n",
    "bytes.py": "x = b'the mend that is said'\n",
    "fenced.md": "# Title\n\n```text\none warning with the mend\n```\n\nSee `the mend` and [here](https://example.org/told).\n",
    "run.sh": "mend=told\nls $mend\n",
}
"""Files without prose that has such a phrase."""


def test_no_such_word_is_left() -> None:
    found = [str(hit) for hit in check()]
    assert not found, "\n".join(["", *found])


def test_every_place_exists_and_is_read() -> None:
    assert [place for place in PLACES if not (ROOT / place).exists()] == []
    assert len(list(files())) > 300


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.example)
def test_a_word_is_found_in_every_kind_of_file(word: Word) -> None:
    for name, text in FILES.items():
        found = [hit for hit in hits(name, text.format(word.example)) if hit.instead == word.instead]
        line = text.partition("{}")[0].count("\n") + 1
        assert [hit.line for hit in found] == [line], name
        assert str(found[0]).startswith(f'{name}:{line}: "')


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.example)
def test_a_word_is_found_across_a_line_break(word: Word) -> None:
    if " " not in word.example:
        return
    broken = word.example.replace(" ", "\n    # ")
    assert [hit for hit in hits("wrapped.py", f"    # {broken}\n") if hit.instead == word.instead]


@pytest.mark.parametrize("fine", [text for word in WORDS for text in word.fine])
def test_good_english_is_not_found(fine: str) -> None:
    for name, text in FILES.items():
        assert list(hits(name, text.format(fine))) == [], name


@pytest.mark.parametrize("name", CODE)
def test_code_is_not_found(name: str) -> None:
    assert list(hits(name, CODE[name])) == []


def test_names_of_functions_and_classes_are_read() -> None:
    source = "def test_a_fault_is_told_once():\n    pass\nclass FrameCourier:\n    pass\n"
    assert [(hit.line, hit.phrase) for hit in hits("names.py", source)] == [(1, "told"), (3, "Courier")]


def test_an_exception_holds_for_its_file_and_its_quote() -> None:
    exceptions = [{"file": "a.*", "quote": "never told anyone", "reason": "a story"}]
    text = "# never told anyone\n"
    assert list(hits("a.py", text, exceptions)) == []
    assert len(list(hits("b.py", text, exceptions))) == 1
    assert len(list(hits("a.py", "# never told\n", exceptions))) == 1
    assert list(hits("a.py", "# never told\n", [{"file": "a.py", "reason": "a story"}])) == []


def test_every_exception_is_needed() -> None:
    sources = {str(file.relative_to(ROOT)): file.read_text() for file in files()}
    for entry in EXCEPTIONS:
        others = [other for other in EXCEPTIONS if other is not entry]
        concerned = [name for name in sources if fnmatch(name, entry["file"])]
        found = [hit for name in concerned for hit in hits(name, sources[name], others)]
        allowed = [hit for name in concerned for hit in hits(name, sources[name])]
        assert len(found) > len(allowed), entry
        assert entry["reason"]
