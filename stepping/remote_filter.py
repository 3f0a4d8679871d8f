"""A seccomp filter that stops calls of which an argument is, or may lead to, an address on remote variables' pages.

The program puts it on itself, on top of whatever filter it has, when its tracer knows those pages. All six registers
of every call are compared: a number that only looks like such an address is sorted out by who gets the stop
(`remote_calls`). Calls that take vectors or messages (writev, sendmsg) name buffers where a filter cannot look: they
are stopped always. A call that is not stopped costs some tens of nanoseconds more.

Source: seccomp(2), linux/filter.h.
"""

import struct
from collections.abc import Iterable

from stepping.errors import SteppingError
from stepping.remote_syscall import RemoteSyscalls
from stepping.remote_vectors import INDIRECT
from stepping.seccomp import Verdict
from stepping.stops import AUDIT_ARCHES
from stepping.syscalls import SYSCALLS
from stepping.tracee_memory import TraceeMemory

_LOAD, _JEQ, _JGE, _RETURN = 0x20, 0x15, 0x35, 0x06
_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET, _ARGUMENTS = 0, 4, 16, 6
_LOW_BITS = 32
_SET_MODE_FILTER = 1
_MAX_SPANS = 64  # some 2,350 instructions, of the 4,096 that the kernel takes

Span = tuple[int, int]


def address_filter(spans: Iterable[Span]) -> bytes:
    """Return the BPF program for addresses in *spans*, half-open: an array of struct sock_filter.

    Raises:
        SteppingError: there are too many of them.
    """
    program = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JEQ, 1, 0, AUDIT_ARCHES["amd64"]),
        (_RETURN, 0, 0, Verdict.ALLOW.value),
        (_LOAD, 0, 0, _NR_OFFSET),
    ]
    for row in SYSCALLS.values():
        if any(arg.kind in INDIRECT for arg in row.args):
            program += [(_JEQ, 0, 1, row.numbers["amd64"]), (_RETURN, 0, 0, Verdict.TRACE.value)]
    pieces = [piece for span in spans for piece in _within_low_half(*span)]
    if len(pieces) > _MAX_SPANS:
        raise SteppingError(f"remote variables lie in more than {_MAX_SPANS} places")
    for argument in range(_ARGUMENTS):
        low_at = _ARGS_OFFSET + 8 * argument
        for high, first, last in pieces:
            program += [
                (_LOAD, 0, 0, low_at + 4),
                (_JEQ, 0, 4, high),
                (_LOAD, 0, 0, low_at),
                (_JGE, 0, 2, first),
                (_JGE, 1, 0, last + 1) if last < 0xFFFFFFFF else (_JGE, 0, 0, last),
                (_RETURN, 0, 0, Verdict.TRACE.value),
            ]
    program.append((_RETURN, 0, 0, Verdict.ALLOW.value))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def install_address_filter(
    sys: RemoteSyscalls, memory: TraceeMemory, buffer: int, room: int, spans: Iterable[Span]
) -> None:
    """Have the tracee of *sys* put the filter on itself; *room* bytes at *buffer* in its memory are for our use.

    Raises:
        RemoteSyscallError: the kernel refuses; it needs no_new_privs or CAP_SYS_ADMIN.
    """
    program = address_filter(spans)
    header = struct.pack("<HxxxxxxQ", len(program) // 8, buffer + 16)
    if len(header) + len(program) > room:
        raise SteppingError("the filter for remote variables is too long")
    memory.write(buffer, header + program)
    sys.call("seccomp", _SET_MODE_FILTER, 0, buffer)


def _within_low_half(start: int, end: int) -> Iterable[tuple[int, int, int]]:
    """Cut a span where the upper half of addresses changes: (upper half, first and last lower half)."""
    while start < end:
        high = start >> _LOW_BITS
        stop = min(end, (high + 1) << _LOW_BITS)
        yield high, start & 0xFFFFFFFF, stop - 1 & 0xFFFFFFFF
        start = stop
