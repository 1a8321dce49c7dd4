"""Statistics of logits: one operation, ``[rows, vocab]`` to some numbers a row, with one module or package per backend.

- :mod:`corevital.kernels.api`: the operation, and the choice of a backend.
- :mod:`corevital.kernels.stats`: what is returned, and the conventions.
- :mod:`corevital.kernels.triton_gpu`: GPU.
- :mod:`corevital.kernels.numba_cpu`: CPU, one read of the logits.
- :mod:`corevital.kernels.plain_torch`: any device, plain torch operations.

Importing this package imports neither torch nor a compiler.
"""

from corevital.kernels.api import Backend, available_backends, token_stats, warm_up
from corevital.kernels.stats import BackendUnavailableError, TokenStats

__all__ = [
    "Backend",
    "BackendUnavailableError",
    "TokenStats",
    "available_backends",
    "token_stats",
    "warm_up",
]
