"""For every test: a fault of ours is raised instead of swallowed."""

import os

os.environ["COREVITAL_RAISE"] = "1"
