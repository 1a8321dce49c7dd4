"""The hub's own HTTP port: ``/metrics``, ``/health`` and ``/corevital/v1/requests/{id}``.

- :mod:`corevital_otel.http.port`: the port in a process: where it listens, its thread, its end.
- :mod:`corevital_otel.http.connection`: bounds for one connection.
- :mod:`corevital_otel.http.application`: what answers at each path.
- :mod:`corevital_otel.http.access`: who may ask, and :mod:`corevital_otel.http.challenge`, by which a client knows it.
- :mod:`corevital_otel.http.answers`: the form of an answer, and of an error.
- :mod:`corevital_otel.http.health`: the hub's state.

All of it happens in a separate thread; the hub and the engine never wait for it.
"""
