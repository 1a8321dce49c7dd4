"""The command line ``corevital``. :mod:`~corevital_otel.cli.app` declares the commands; each has a module here.

``demo/`` is a folder, since it brings its own server, tasks, traffic and model.
"""

from corevital_otel.cli.app import main

__all__ = ["main"]
