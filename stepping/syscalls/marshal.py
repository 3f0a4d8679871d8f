"""Carries a call's arguments out of a program's memory, and what the call filled back into it.

The table says which arguments point to what; nothing here knows a single call. Everything is read exactly
once: whoever acts on a call acts on the copy, so a program gains nothing by changing its memory meanwhile.

Not trusted: the program (any pointer, any length) and the answer (outs that were not offered, or longer).
"""

import errno
import struct
from typing import NamedTuple, Protocol

from stepping.errors import MemoryFaultError
from stepping.syscalls.model import Arg, ArgKind, Length, Syscall

#: The most bytes that one buffer of a call carries; a longer transfer becomes a short one, as the kernel's own
#: calls may be short.
MAX_TRANSFER_BYTES = 8 << 20

_MAX_STRING_BYTES = 4096  # PATH_MAX
_MAX_STRINGS_BYTES = 2 << 20  # ARG_MAX of a default stack limit
_MAX_IOVECS = 1024  # UIO_MAXIOV

Args = tuple[int, int, int, int, int, int]


class ProgramMemory(Protocol):
    """Where pointers lead."""

    def read(self, address: int, size: int) -> bytes:
        """Return exactly *size* bytes; MemoryFaultError if they are not all there."""

    def read_string(self, address: int, limit: int) -> bytes:
        """Return the bytes before the first NUL; ValueError if it is not within *limit*."""

    def write(self, address: int, data: bytes) -> None:
        """Put *data* there; MemoryFaultError if not all of it fits."""


class BadArgumentError(Exception):
    """The kernel itself would refuse the arguments, with *errno*."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


class Gathered(NamedTuple):
    """A call as it can be sent elsewhere.

    args: the registers, lengths cut to `MAX_TRANSFER_BYTES`; ins: by argument index, the bytes that the call
    reads; outs: by argument index, how many bytes it may fill; iovecs: by argument index, (address, size) of
    the buffers that an out-vector scatters to.
    """

    args: Args
    ins: dict[int, bytes]
    outs: dict[int, int]
    iovecs: dict[int, list[tuple[int, int]]]


_POINTERS: dict[str, tuple[tuple[int, Arg], ...]] = {}


def gather(row: Syscall, args: Args, memory: ProgramMemory) -> Gathered:
    """Copy what the call *row* with registers *args* reads from *memory*.

    A null pointer is in neither ins nor outs.

    Raises:
        BadArgumentError: an unreadable pointer (EFAULT), an overlong string (ENAMETOOLONG) or vector (EINVAL).
    """
    pointers = _POINTERS.get(row.name)
    if pointers is None:
        pointers = tuple((i, arg) for i, arg in enumerate(row.args) if _is_followed(arg.kind))
        _POINTERS[row.name] = pointers
    gathered = Gathered(args, {}, {}, {})
    try:
        for index, arg in pointers:
            if args[index]:
                gathered = _gather_one(row, gathered, index, arg, memory)
    except MemoryFaultError as error:
        raise BadArgumentError(errno.EFAULT) from error
    return gathered


def scatter(gathered: Gathered, outs: dict[int, bytes], memory: ProgramMemory) -> None:
    """Write *outs*, the bytes that the call filled, by argument index, to where its pointers lead.

    Bytes beyond what was offered, and arguments that offered nothing, are not written.

    Raises:
        BadArgumentError: EFAULT, a pointer cannot be written to.
    """
    try:
        for index, data in outs.items():
            room = gathered.outs.get(index, 0)
            if index in gathered.iovecs:
                _scatter_iovec(gathered.iovecs[index], data[:room], memory)
            elif room:
                memory.write(gathered.args[index], data if len(data) <= room else data[:room])
    except MemoryFaultError as error:
        raise BadArgumentError(errno.EFAULT) from error


def length_of(row: Syscall, length: Length | None, args: Args, memory: ProgramMemory) -> int:
    """Return the size in bytes (or number of items) that *length* stands for in this call, never negative.

    Raises:
        MemoryFaultError: an indirect length cannot be read.
    """
    if length is None:
        return 0
    if length.arg is None:
        return length.scale
    value = args[length.arg]
    if length.indirect:
        value = struct.unpack("=I", memory.read(value, 4))[0] if value else 0
    elif row.args[length.arg].kind in (ArgKind.INT, ArgKind.UINT):
        value &= 0xFFFFFFFF
        if value >> 31 and row.args[length.arg].kind is ArgKind.INT:
            return 0
    return value * length.scale


def _is_followed(kind: ArgKind) -> bool:
    return kind.is_pointer and kind is not ArgKind.PTR


def _gather_one(row: Syscall, call: Gathered, index: int, arg: Arg, memory: ProgramMemory) -> Gathered:
    address = call.args[index]
    match arg.kind:
        case ArgKind.OUT:
            call, size = _bounded_length(row, call, arg, memory)
            call.outs[index] = size
        case ArgKind.IN:
            call, size = _bounded_length(row, call, arg, memory)
            call.ins[index] = memory.read(address, size)
        case ArgKind.PATH | ArgKind.STR:
            try:
                call.ins[index] = memory.read_string(address, _MAX_STRING_BYTES)
            except ValueError as error:
                raise BadArgumentError(errno.ENAMETOOLONG) from error
        case ArgKind.INOUT:
            call, size = _bounded_length(row, call, arg, memory)
            call.ins[index] = memory.read(address, size)
            call.outs[index] = size
        case ArgKind.IOV_IN | ArgKind.IOV_OUT:
            vector = _read_iovec(address, length_of(row, arg.length, call.args, memory), memory)
            if arg.kind is ArgKind.IOV_IN:
                call.ins[index] = b"".join(memory.read(base, size) for base, size in vector)
            else:
                call.outs[index] = sum(size for _, size in vector)
                call.iovecs[index] = vector
        case ArgKind.STRV:
            call.ins[index] = b"\0".join(_read_strings(address, memory))
        case ArgKind.REQUEST_ARG:
            _gather_request_argument(row, call, index, memory)
    return call


def _bounded_length(row: Syscall, call: Gathered, arg: Arg, memory: ProgramMemory) -> tuple[Gathered, int]:
    size = length_of(row, arg.length, call.args, memory)
    if size <= MAX_TRANSFER_BYTES:
        return call, size
    length = arg.length
    if length is None or length.arg is None or length.indirect:
        return call, MAX_TRANSFER_BYTES
    items = MAX_TRANSFER_BYTES // length.scale
    a0, a1, a2, a3, a4, a5 = (items if i == length.arg else value for i, value in enumerate(call.args))
    return call._replace(args=(a0, a1, a2, a3, a4, a5)), items * length.scale


def _read_iovec(address: int, count: int, memory: ProgramMemory) -> list[tuple[int, int]]:
    """Return (base, size) of the buffers, in total at most `MAX_TRANSFER_BYTES`, empty ones left out."""
    if count > _MAX_IOVECS:
        raise BadArgumentError(errno.EINVAL)
    vector = []
    room = MAX_TRANSFER_BYTES
    for base, size in struct.iter_unpack("=QQ", memory.read(address, 16 * count)):
        if size >> 63:
            raise BadArgumentError(errno.EINVAL)
        if size and room:
            vector.append((base, min(size, room)))
            room -= vector[-1][1]
    return vector


def _scatter_iovec(vector: list[tuple[int, int]], data: bytes, memory: ProgramMemory) -> None:
    done = 0
    for base, size in vector:
        if done >= len(data):
            return
        memory.write(base, data[done : done + size])
        done += size


def _read_strings(address: int, memory: ProgramMemory) -> list[bytes]:
    strings: list[bytes] = []
    total = 0
    while True:
        (pointer,) = struct.unpack("=Q", memory.read(address + 8 * len(strings), 8))
        if not pointer:
            return strings
        try:
            strings.append(memory.read_string(pointer, 32 * _MAX_STRING_BYTES))  # MAX_ARG_STRLEN
        except ValueError as error:
            raise BadArgumentError(errno.E2BIG) from error
        total += len(strings[-1]) + 9
        if total > _MAX_STRINGS_BYTES:
            raise BadArgumentError(errno.E2BIG)


def _gather_request_argument(row: Syscall, call: Gathered, index: int, memory: ProgramMemory) -> None:
    from stepping.syscalls.requests import request_argument

    sizes = request_argument(row.name, call.args[1] & 0xFFFFFFFF)
    if sizes is None:
        return
    in_bytes, out_bytes = sizes
    if in_bytes:
        call.ins[index] = memory.read(call.args[index], in_bytes)
    if out_bytes:
        call.outs[index] = out_bytes
