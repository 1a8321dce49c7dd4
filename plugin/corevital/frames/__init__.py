"""What crosses from the engine's processes to the hub: frames of the workers, and events of the engine core.

- :mod:`corevital.frames.layout`: the binary layout of one frame.
- :mod:`corevital.frames.stamp`: the mark a request carries so that the worker knows it.
- :mod:`corevital.frames.lifecycle`: what the frontend knows of a request: admission and finish.
- :mod:`corevital.frames.engine_key`: what the processes of one deployment share.
- :mod:`corevital.frames.wire`: connections between them: authenticated, bounded, never blocking.
- :mod:`corevital.frames.sender`, :mod:`corevital.frames.receiver`: the two ends of such a connection.
- :mod:`corevital.frames.events`: what an engine core sends a hub, and the hub's answers.
- :mod:`corevital.frames.remote_hub`: the engine core's client of a hub in another process.

This package knows neither torch, nor an engine, nor telemetry.
"""
