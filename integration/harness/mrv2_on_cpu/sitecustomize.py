"""Model Runner V2 on a CPU, slow but real: its Triton kernels run in Triton's interpreter.

For tests: this folder goes first on PYTHONPATH, together with ``VLLM_USE_V2_MODEL_RUNNER=1``. vLLM looks for an active
Triton driver before it uses Triton; the interpreter needs none, so this module provides a fake one.
"""

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import triton.backends
from triton.runtime import interpreter


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return True


class _Backend:
    driver = _Driver
    compiler = None


triton.backends.backends["cpu"] = _Backend


class _Index(int):
    """A loop index: compiled code may cast one, which the interpreter's plain int cannot."""

    def to(self, _dtype: object) -> "_Index":
        return self


def _loops_yield_indices() -> None:
    patch = interpreter._patch_lang_core

    def patched(lang: Any, scope: Any) -> None:
        patch(lang, scope)
        plain = lang.range
        scope.set_attr(lang, "range", lambda *args, **kwargs: map(_Index, plain(*args, **kwargs)))

    interpreter._patch_lang_core = patched


def _masks_are_bool() -> None:
    """``scalar & vector`` of comparisons leaves integers in the interpreter, which its loads refuse as a mask."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def masked_load(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(self, pointers, mask, *others)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(self, pointers, value, mask, *others)

    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store


_loops_yield_indices()
_masks_are_bool()
