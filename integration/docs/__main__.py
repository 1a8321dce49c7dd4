"""``python -m integration.docs`` writes ``docs/reference/*.md`` from the code; ``--check`` compares.

Needs no engine.
"""

import sys
from pathlib import Path

from integration.docs import reference

FOLDER = Path(__file__).resolve().parents[2] / "docs/reference"


def main(arguments: list[str]) -> int:
    """Write or check; the number of pages that differ is the exit status."""
    made = {FOLDER / f"{name}.md": text for name, text in reference.pages().items()}
    if arguments == ["--check"]:
        stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
        stale += sorted(set(FOLDER.glob("*.md")) - set(made))
        for path in stale:
            sys.stderr.write(f"docs/reference/{path.name} differs from the code: run python -m integration.docs\n")
        return len(stale)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
