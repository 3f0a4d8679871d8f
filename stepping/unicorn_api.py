"""Unicorn's C functions and numbers: the only module that imports Unicorn.

Why the C functions and not Unicorn's Python classes: a call by way of the classes costs five times as much. The
functions that run no guest code are called without giving up the interpreter's lock (`API`, a PyDLL), which halves
their price again; those that do, and those with a variable number of arguments, are in `LONG_API`.
"""

import ctypes
from types import TracebackType
from typing import Any

from unicorn import arm64_const, unicorn_const, x86_const
from unicorn.unicorn_py3 import unicorn as _binding

from stepping.errors import SteppingError

__all__ = [
    "API",
    "BLOCK_HOOK",
    "CODE_HOOK",
    "FILL_HOOK",
    "INTERRUPT_HOOK",
    "LONG_API",
    "MEMORY_FAULT_HOOK",
    "MEMORY_HOOK",
    "SKIP_HOOK",
    "SYSCALL_HOOK",
    "EmulatorError",
    "Failures",
    "Page",
    "address_of",
    "arm64_const",
    "check",
    "control",
    "reason",
    "unicorn_const",
    "x86_const",
]

API: Any = ctypes.PyDLL(_binding.uclib._name, handle=_binding.uclib._handle)
LONG_API: Any = _binding.uclib

INTERRUPT_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
SYSCALL_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
SKIP_HOOK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
BLOCK_HOOK = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.POINTER(ctypes.c_int32)
)
CODE_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
MEMORY_HOOK = ctypes.CFUNCTYPE(
    *(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p)
)
MEMORY_FAULT_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_bool,
    *(ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p),
)


class Page(ctypes.Structure):
    """uc_tlb_entry."""

    _fields_ = (("physical", ctypes.c_uint64), ("protection", ctypes.c_uint32))


FILL_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.POINTER(Page), ctypes.c_void_p
)


class EmulatorError(SteppingError):
    """Unicorn cannot do what it was asked to do: the text says what, and Unicorn's reason."""


class Failures:
    """Catches what a callback raises, stops the processor, and keeps it for whoever runs that to raise."""

    def __init__(self, engine: ctypes.c_void_p) -> None:
        self._engine = engine
        self.raised: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, where: TracebackType | None
    ) -> bool:
        if raised is not None:
            self.raised = raised
            API.uc_emu_stop(self._engine)
        return True


def control(engine: ctypes.c_void_p, what: int, *values: Any) -> None:
    """Change setting *what* (UC_CTL_*) of *engine*.

    Raises:
        EmulatorError: it cannot be changed.
    """
    command = what | len(values) << 26 | unicorn_const.UC_CTL_IO_WRITE << 30
    check(LONG_API.uc_ctl(engine, ctypes.c_int(command), *values), f"take setting {what}")


def reason(error: int) -> str:
    """Return Unicorn's words for its error number."""
    text: bytes = LONG_API.uc_strerror(error)
    return text.decode()


def address_of(function: Any) -> int:
    """Return the address of a C function."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def check(error: int, what: str) -> None:
    """Raise if *error*, what a function of Unicorn returned, is one.

    Raises:
        EmulatorError: it is; *what* was to be done.
    """
    if error != unicorn_const.UC_ERR_OK:
        raise EmulatorError(f"the emulator cannot {what}: {reason(error)}")
