"""The embedded store: one SQLite file, readable with any SQLite tool.

- :mod:`corevital_otel.store.schema`: the tables and their version.
- :mod:`corevital_otel.store.files`: opens the file, and notices when it is moved.
- :mod:`corevital_otel.store.writer`: writes reports, off the request path; :mod:`~corevital_otel.store.waiting`: what
  waits for it; :mod:`~corevital_otel.store.rows`: the row of a report; :mod:`~corevital_otel.store.statements`: the
  SQL.
- :mod:`corevital_otel.store.upkeep`: deletes what is too old or too much; :mod:`~corevital_otel.store.clock`
  decides what is too old.
- :mod:`corevital_otel.store.reader`: finds reports again; :mod:`corevital_otel.store.outbox`: spans that are not sent.
- :mod:`corevital_otel.store.scan`: reads all rows; :mod:`corevital_otel.store.tables`: as Parquet, CSV or JSON Lines;
  :mod:`corevital_otel.store.cells`: what a spreadsheet may open; :mod:`corevital_otel.store.query`: read-only SQL.
- :mod:`corevital_otel.store.restore`: puts a backup in place.
- :mod:`corevital_otel.store.decode`: rows as checked values; :mod:`corevital_otel.store.series`: packed series.
"""
