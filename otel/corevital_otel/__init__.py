"""What turns frames into meaning: features, health flags, risk, spans, metrics and the store.

Never imports torch or an engine. From :mod:`corevital` it uses the frames alone.
"""

from corevital._version import __version__

__all__ = ["__version__"]
