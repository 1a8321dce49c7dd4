"""What the compiled halves of :mod:`corevital.kernels.numba_cpu` need of numba and of the compiler beneath it.

numba's cache on disk looks at the age of their files alone: touch those after a change here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.extending import intrinsic

__all__ = ["as_bits", "as_float", "compiled", "fetch", "pointer", "take"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(task: Callable[[Any], None]) -> Any:
    """A C function ``void (void *task)``, compiled if need be: seconds, or less from numba's cache.

    It is at ``.address`` for as long as the object lives.
    """
    signature = numba.types.void(numba.types.voidptr)
    try:
        return numba.cfunc(signature, cache=True)(task)
    except Exception:  # no directory for the cache that can be written to, or a damaged file in it: compile here
        return numba.cfunc(signature)(task)


def _bitcast(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


@cast(Callable[[_Function], Any], intrinsic)
def as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 that has these 32 bits."""
    return numba.types.float32(numba.types.int32), _bitcast


@cast(Callable[[_Function], Any], intrinsic)
def as_bits(typing_context: Any, value: Any) -> Any:
    """The 32 bits of a float32."""
    return numba.types.int32(numba.types.float32), _bitcast


@cast(Callable[[_Function], Any], intrinsic)
def pointer(typing_context: Any, address: Any) -> Any:
    """The pointer to this address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(numba.types.voidptr))

    return numba.types.voidptr(numba.types.int64), generate


@cast(Callable[[_Function], Any], intrinsic)
def take(typing_context: Any, turn: Any) -> Any:
    """Atomically add 1 to the first entry of an int64 array, and return what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(turn)(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, context.get_constant(numba.types.int64, 1), "monotonic")

    return numba.types.int64(turn), generate


@cast(Callable[[_Function], Any], intrinsic)
def fetch(typing_context: Any, flat: Any, index: Any) -> Any:
    """Ask for the cache line of an entry, which need not exist: nothing is read, so nothing can fault."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = builder.gep(context.make_array(flat)(context, builder, arguments[0]).data, [arguments[1]])
        address, word = context.get_value_type(numba.types.voidptr), context.get_value_type(numba.types.int32)
        kind = ir.FunctionType(ir.VoidType(), [address, word, word, word])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [address], kind)
        # to read, into all levels of the cache, data
        builder.call(prefetch, [builder.bitcast(where, address), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return numba.types.void(flat, numba.types.int64), generate
