"""Printing: in any encoding and width, to any standard output, and safe for untrusted text."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from rich.console import Console, ConsoleDimensions
from rich.segment import Segment

from corevital.text import printable, printable_lines

PIPE_WIDTH: Final = 1000
"""Columns without a terminal: a row is one line, even with a long request id."""
_WIDTHS: Final = (20, PIPE_WIDTH)
_HEIGHTS: Final = (4, 1000)
_LONGEST_LINE: Final = 1000
"""Characters of an error line."""
_ERRORS: Final = "corevital-ascii"
_ALTERNATIVES: Final = {
    "│": "|", "┃": "|", "─": "-", "━": "-", "▲": "^", "✓": "+", "✗": "x", "…": "~", "•": "*", "\u2800": " ",
}  # fmt: skip


def prepare() -> None:
    """Make the standard streams usable. Call it before any file is opened.

    - A closed stream becomes the null device; else the next opened file would get its descriptor.
    - Characters that the encoding lacks become ASCII characters of the same width.
    - Invalid ``COLUMNS`` and ``LINES`` are ignored.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    codecs.register_error(_ERRORS, _replaced)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Output(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=_ERRORS)
    for variable in ("COLUMNS", "LINES"):
        value = os.environ.get(variable, "")
        if not (value.isascii() and value.isdigit() and len(value) <= 5 and int(value) > 0):
            os.environ.pop(variable, None)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    if "\u2801" <= character <= "\u28ff":  # braille, used in charts
        return ":"
    return _ALTERNATIVES.get(character) or ("+" if "\u2500" <= character <= "\u257f" else "?")


def print_text(text: str) -> None:
    """Print text of one or more lines to standard output, without terminal control characters."""
    print(printable_lines(text))  # noqa: T201 - the only place


def print_error(message: str) -> None:
    """Print an error as one line to standard error, if that is writable."""
    with suppress(OSError, ValueError):
        print(f"corevital: {printable(' '.join(message.split()), _LONGEST_LINE)}", file=sys.stderr, flush=True)  # noqa: T201


class OutputError(Exception):
    """Standard output cannot be written. Not an ``OSError``, since click and rich handle those themselves.

    Attributes:
        closed: the reader closed the pipe.
    """

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"standard output cannot be written ({cause.strerror or cause}): free space, or write elsewhere"
        )
        self.closed = isinstance(cause, BrokenPipeError)


class _Output(io.TextIOWrapper):
    """Standard output whose failures raise :class:`OutputError`."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        encoding, line_buffering = stream.encoding, stream.line_buffering
        super().__init__(stream.detach(), encoding, _ERRORS, line_buffering=line_buffering)

    def write(self, text: str) -> int:
        """As ``TextIOWrapper``."""
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        """As ``TextIOWrapper``."""
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from None


def discard() -> None:
    """Discard what standard output still buffers."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def console() -> Console:
    """Standard output; on a pipe without colours and wide enough for any table.

    Markup and emoji codes are off: ids, models and answers are untrusted and may contain brackets and colons.
    """
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return _Console(width=width, highlight=False, markup=False, emoji=False)


class _Console(Console):
    """Escapes unprintable text and bounds the size.

    Give tables printable cells: escapes are longer, and the layout must know their width.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """As ``Console``; into a pipe without the spaces that pad lines to a width."""
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        text = "\n".join(line.rstrip(" ") for line in captured.get().split("\n"))
        super().print(text, end="", soft_wrap=True, markup=False, highlight=False, emoji=False)

    @property  # type: ignore[misc]  # nothing sets it
    def size(self) -> ConsoleDimensions:
        """The terminal's size, within bounds."""
        found = super().size
        return ConsoleDimensions(_within(found.width, _WIDTHS), _within(found.height, _HEIGHTS))

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """The renderable's segments, all text in them printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable_lines(segment.text), segment.style)


def _within(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])
