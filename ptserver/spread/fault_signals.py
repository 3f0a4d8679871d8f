"""What the kernel says with the signal of a touch of memory. Source: sigaction(2), asm-generic/siginfo.h."""

import signal
import struct
from typing import NamedTuple

_SIGINFO = struct.Struct("=iii4xQ")  # signal, errno, code, address
_SIGINFO_BYTES = 128
_SEGV_MAPERR, _BUS_MCEERR_AR = 1, 4


class FaultSignal(NamedTuple):
    """is_unmapped: of a SIGSEGV, nothing is mapped there; is_failed: of a SIGBUS, the memory there fails."""

    address: int
    is_unmapped: bool
    is_failed: bool


def decode_fault(siginfo: bytes) -> FaultSignal:
    """Return what the siginfo_t of a SIGSEGV or SIGBUS says."""
    signo, _, code, address = _SIGINFO.unpack_from(siginfo)
    return FaultSignal(
        address,
        (signo, code) == (signal.SIGSEGV, _SEGV_MAPERR),
        (signo, code) == (signal.SIGBUS, _BUS_MCEERR_AR),
    )


def encode_segfault(address: int) -> bytes:
    """Return the siginfo_t of an access to *address*, where nothing is."""
    return _SIGINFO.pack(signal.SIGSEGV, 0, _SEGV_MAPERR, address).ljust(_SIGINFO_BYTES, b"\0")
