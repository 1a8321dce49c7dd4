"""``corevital ui``: a web page over the store and a running server. Needs the extra ``corevital[ui]``.

- :mod:`corevital_otel.ui.application`: which view answers at each path, and what every answer has.
- :mod:`corevital_otel.ui.access`: who may see it.
- :mod:`corevital_otel.ui.asked`: filters, as they stand in the URL.
- :mod:`corevital_otel.ui.listing`, ``.request``, ``.trends``, ``.comparison``, ``.now``: one view each, as values.
- :mod:`corevital_otel.ui.pictures`: numbers as shapes.
- :mod:`corevital_otel.ui.pages`: the templates, which escape all that they are given.
- ``static/``: our style and scripts; in ``vendor/`` htmx and uPlot, which the build fetches: hatch_build.py.

Every view works without scripts. Nothing is loaded from another host.
"""
