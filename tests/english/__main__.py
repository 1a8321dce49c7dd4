"""``python -m tests.english [FILE or FOLDER ...]``, in the repository: the phrases to replace. Exit status 1 if any."""

import sys
from pathlib import Path

from tests.english.check import PLACES, check

found = check(sys.argv[1:] or PLACES, Path.cwd())
sys.stdout.writelines(f"{hit}\n" for hit in found)
sys.exit(bool(found))
