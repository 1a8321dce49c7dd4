"""What runs inside the serving engine: statistics of the logits, and the frames that carry them out.

Importing this package imports neither torch nor an engine.
"""

from corevital._version import __version__

__all__ = ["__version__"]
