"""vLLM. ``corevital.engines.vllm:LogitsProcessor`` is the class that the name ``corevital`` means.

- :mod:`~corevital.engines.vllm.processor`: the class itself, for whichever model runner vLLM chose.
- :mod:`~corevital.engines.vllm.runner_v1`, :mod:`~corevital.engines.vllm.runner_v2`: adapters of its two model runners.
- :mod:`~corevital.engines.vllm.frontend`: requests as the Python API server sees them.
- :mod:`~corevital.engines.vllm.request_args`: the ``corevital_*`` arguments of a request.
- :mod:`~corevital.engines.vllm.names`: every private name of vLLM that we use, and the versions it was checked on.
"""

from typing import Any

__all__ = ["LogitsProcessor"]


def __getattr__(name: str) -> Any:
    """The class is made when vLLM asks for it: its bases come from the vLLM that is installed."""
    if name == "LogitsProcessor":
        from corevital.engines.vllm.processor import LogitsProcessor

        return LogitsProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
