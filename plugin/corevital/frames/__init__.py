"""Frames: the only thing that crosses from the engine's worker to the API server process.

- :mod:`corevital.frames.record`: the binary layout of one frame.
- :mod:`corevital.frames.stamp`: the mark a request carries so that the worker knows it.
- :mod:`corevital.frames.lifecycle`: what the frontend knows of a request: admission and finish.
- :mod:`corevital.frames.transport`: how frames travel: authenticated, bounded, one-way, never blocking.

This package knows neither torch, nor an engine, nor telemetry.
"""
