"""Raw syscalls, by syscall(2) of the C library or another function like it.

Thread rules: any thread, after `call_by`.
"""

import ctypes
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)


def _prototype(arity: int) -> Callable[..., Callable[..., int]]:
    # c_void_p takes any int, masked to 64 bits, and bytes, as the address of their NUL-terminated content.
    return ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *[ctypes.c_void_p] * arity, use_errno=True)


#: By arity: makes the call of a number with so many arguments, each an int or the address of bytes. Returns its value
#: or -1, with the reason where `ctypes.get_errno` finds it.
CALLS: list[Callable[..., int]] = [_prototype(arity)(("syscall", _libc)) for arity in range(7)]


def call_by(entry: int) -> None:
    """Make all calls by the function at address *entry* instead. To be called before any is made."""
    CALLS[:] = [_prototype(arity)(entry) for arity in range(7)]


def raw_call(number: int, *args: "int | bytes") -> int:
    """Make a call; return its value, or a negative errno."""
    value = CALLS[len(args)](number, *args)
    return value if value != -1 else -ctypes.get_errno()
