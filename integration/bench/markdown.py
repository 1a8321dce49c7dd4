"""Tables in Markdown, printed row by row."""

from __future__ import annotations


def row(*cells: object) -> None:
    """Print a row."""
    print(f"| {' | '.join(map(str, cells))} |")


def head(*cells: str) -> None:
    """Print a blank line, and a table's first two lines."""
    print()
    row(*cells)
    row(*("---" for _ in cells))
