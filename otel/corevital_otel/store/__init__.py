"""The embedded store: one SQLite file, readable with any SQLite tool.

- :mod:`corevital_otel.store.schema`: the tables and their version.
- :mod:`corevital_otel.store.series`: how per-token series are packed.
- :mod:`corevital_otel.store.writer`: writes reports, off the request path.
- :mod:`corevital_otel.store.reader`: finds them again.
"""
