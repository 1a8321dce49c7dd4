"""Every private name of TGI that we touch, in one table, which is checked at the start of a shard.

Where one is missing, that is logged in one line and nothing is measured: the shard serves on. ``make test-tgi`` looks
the same table up in TGI's sources, and a test in the sources of our stand-in.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping
from typing import Any, Final

PACKAGE: Final = "text_generation_server"

CALLS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "server": {
        "TextGenerationService.__init__": ("self", "model", "cache", "server_urls"),
        "TextGenerationService.Prefill": ("self", "request", "context"),
        "TextGenerationService.Decode": ("self", "request", "context"),
        "TextGenerationService.FilterBatch": ("self", "request", "context"),
        "TextGenerationService.ClearCache": ("self", "request", "context"),
    },
    "utils.tokens": {
        "NextTokenChooser.__call__": ("self", "input_ids", "scores"),
        "HeterogeneousNextTokenChooser.__call__": (
            "self", "input_ids", "scores", "speculate", "speculated_ids", "speculative_scores", "verbose",
        ),
        "HeterogeneousNextTokenChooser.filter": ("self", "indices"),
        "StoppingCriteria.__call__": ("self", "last_token", "last_output"),
    },
    "models.model": {"Model.generate_token": ("self", "batch")},
}  # fmt: skip
"""By module: methods and their parameters."""

SPELLED: Final[Mapping[str, tuple[str, ...]]] = {
    "utils.tokens": ("self.static_warper", "self.warpers", "if self.static_warper is None"),
    "models.model": ("self.model_id", "self.rank", "self.world_size", "self.dtype", "self.device",
                     "self.requires_padding", "self.tokenizer"),
    "models.causal_lm": ("batch.requests", "batch.stopping_criterias", "batch.next_token_choosers",
                         "batch.input_lengths"),
    "models.seq2seq_lm": ("batch.requests", "batch.stopping_criterias", "batch.next_token_choosers",
                          "batch.input_lengths"),
    "models.flash_causal_lm": ("batch.requests", "batch.stopping_criterias", "batch.next_token_chooser",
                               "batch.prompt_lengths"),
}  # fmt: skip
"""By module: what its text must hold. Only sources can be asked for these."""

MESSAGES: Final = (
    "uint64 request_id = 1", "FINISH_REASON_LENGTH = 0", "FINISH_REASON_EOS_TOKEN = 1",
    "FINISH_REASON_STOP_SEQUENCE = 2", "repeated uint64 request_ids = 2", "optional uint64 id = 1",
    "uint32 max_new_tokens = 1", "uint32 cache_len = 12", "GRAMMAR_TYPE_JSON = 1",
)  # fmt: skip
"""What ``proto/v3/generate.proto``, the contract of router and shard, must hold."""

LIVENESS: Final = 2**64 - 1
"""The id of the request that the router checks a shard's health with."""

REASONS: Final = {0: "length", 1: "stop", 2: "stop"}
"""By number of its ``FinishReason``."""
EOS_TOKEN: Final = 1
STOP_SEQUENCE: Final = 2
GRAMMAR_JSON: Final = 1


def module(name: str) -> Any:
    """A module of TGI's server.

    Raises:
        ImportError: there is none of this name.
    """
    return importlib.import_module(f"{PACKAGE}.{name}")


def missing() -> str | None:
    """The first name that this TGI lacks, or has with other parameters; None if all are as we know them."""
    for name, methods in CALLS.items():
        try:
            found = module(name)
        except ImportError:
            return f"{PACKAGE}.{name}"
        for method, parameters in methods.items():
            owner, _, attribute = method.partition(".")
            call = getattr(getattr(found, owner, None), attribute, None)
            if call is None:
                return method
            if tuple(inspect.signature(call).parameters) != parameters:
                return f"{method} with the parameters {', '.join(parameters)}"
    return None


def version() -> str:
    """The version of TGI's Python package, which is not raised with TGI's own; ``unknown`` where there is none."""
    try:
        return importlib.metadata.version("text-generation-server")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
