"""What one call of ``generate()`` asks for, as transformers will read it: its arguments, then the given configuration,
then the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from corevital.engines.transformers.engine import CHANGED, RUNNER, STAGES

_BEAMS: Final = "beam search cannot be measured, its rows change their sequences: pass num_beams=1 or no monitor"
_DRAFTS: Final = "{} cannot be measured: its rows are not one for each sequence; leave it or the monitor out"

_REFUSED: Final = (
    "constraints", "force_words_ids", "penalty_alpha", "dola_layers", "prompt_lookup_num_tokens",
    "use_mtp", "assistant_early_exit",
)  # fmt: skip
"""Options under which rows of logits are not one for each sequence and step; ``num_beams`` besides."""

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "guidance_scale": (1,),
    "sequence_bias": (),
    "encoder_repetition_penalty": (1,),
    "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
}
"""Options whose processors transformers puts before ours, and their values that make none; None is one of each.
Temperature, top-k and other sampling options come after ours."""


class Asked(NamedTuple):
    """A call of ``generate()``.

    Attributes:
        model: the name of the model.
        stage: of the logits that our processor is shown.
        choices: sequences for each prompt.
        temperature, top_p, top_k: as they will be used; None where tokens are not sampled.
        max_tokens: new tokens at most, None where only the total length is limited.
        ends: tokens that end a sequence.
        may_time_out: it may end before its tokens do.
        prompt_tokens: by prompt, without padding; None where no mask says it.
    """

    model: str
    stage: str
    choices: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    max_tokens: int | None
    ends: frozenset[int]
    may_time_out: bool
    prompt_tokens: list[int] | None


def read(model: Any, call: Mapping[str, Any], is_first: bool) -> Asked:
    """What a call asks for.

    Args:
        model: the model.
        call: the arguments of its ``generate()``, by name.
        is_first: no processor of the caller comes before ours.

    Raises:
        ValueError: this way of generating cannot be measured; its text is the one line for the user.
    """
    option = _options(model, call)
    if (option("num_beams") or 1) > 1:
        raise ValueError(_BEAMS)
    for name in ("assistant_model", "custom_generate"):
        if call.get(name) is not None:
            raise ValueError(_DRAFTS.format(name))
    for name in _REFUSED:
        if option(name):
            raise ValueError(_DRAFTS.format(name))
    is_raw = is_first and call.get("prefix_allowed_tokens_fn") is None and _is_neutral(option)
    samples = bool(option("do_sample"))
    mask = call.get("attention_mask")
    return Asked(
        model=getattr(model, "name_or_path", "") or type(model).__name__,
        stage=STAGES[RUNNER] if is_raw else CHANGED,
        choices=option("num_return_sequences") or 1,
        temperature=option("temperature") if samples else None,
        top_p=option("top_p") if samples else None,
        top_k=option("top_k") if samples else None,
        max_tokens=option("max_new_tokens"),
        ends=tokens(option("eos_token_id")),
        may_time_out=option("max_time") is not None,
        prompt_tokens=mask.sum(-1).tolist() if mask is not None and mask.ndim == 2 else None,
    )


def stop_strings(model: Any, call: Mapping[str, Any]) -> Any:
    """The stop strings of a call, None where it has none."""
    return _options(model, call)("stop_strings")


def tokens(given: Any) -> frozenset[int]:
    """End tokens, as a number, several, or a tensor of them."""
    if given is None:
        return frozenset()
    if hasattr(given, "tolist"):
        given = given.tolist()
    return frozenset(given if isinstance(given, Iterable) else [given])


def _options(model: Any, call: Mapping[str, Any]) -> Callable[[str], Any]:
    configs = [config for config in (call.get("generation_config"), model.generation_config) if config is not None]

    def option(name: str) -> Any:
        if name in call:
            return call[name]
        return next((value for config in configs if (value := getattr(config, name, None)) is not None), None)

    return option


def _is_neutral(option: Callable[[str], Any]) -> bool:
    return all((value := option(name)) is None or value in neutral for name, neutral in _NEUTRAL.items())
