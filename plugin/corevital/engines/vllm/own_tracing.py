"""vLLM's own tracing (``--otlp-traces-endpoint``), beside ours."""

from __future__ import annotations

import functools
from typing import Any, Final

from corevital.engines.vllm.names import version
from corevital.log import warn_once

_MARK: Final = "_corevital"
_MAKER: Final = "instrument_manual"
_USAGE: Final = "gen_ai.usage."


def traces_endpoint(vllm_config: Any) -> str | None:
    """Where vLLM's own tracing sends its spans; None where it is off."""
    observability = getattr(vllm_config, "observability_config", None)
    return getattr(observability, "otlp_traces_endpoint", None) or None


def leave_tokens_to_us() -> None:
    """Take the token counts off vLLM's own ``llm_request`` spans, where ours have them in the same trace. Idempotent.

    A backend that sums ``gen_ai.usage.*`` over a trace would count, and bill, each token twice.
    """
    from vllm.v1.engine import output_processor

    make = getattr(output_processor, _MAKER, None)
    if make is None:
        warn_once(
            "usage",
            "vLLM %s makes its spans in an unknown way, so its spans and ours both count each token: "
            "leave --otlp-traces-endpoint out, or sum only corevital.* attributes",
            version(),
        )
        return
    if hasattr(make, _MARK):
        return

    @functools.wraps(make)
    def without_usage(*args: Any, attributes: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        kept = {name: value for name, value in (attributes or {}).items() if not name.startswith(_USAGE)}
        return make(*args, attributes=kept, **kwargs)

    setattr(without_usage, _MARK, True)
    setattr(output_processor, _MAKER, without_usage)
