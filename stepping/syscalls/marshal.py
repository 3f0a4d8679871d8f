"""Carries a call's arguments out of a program's memory, and what the call filled back into it.

The table says which arguments point to what; nothing here knows a single call. A row is compiled, at its first
use, into one step per pointer that is followed, because this runs for every call that is taken.

Everything is read exactly once: whoever acts on a call acts on the copy, so a program gains nothing by changing
its memory meanwhile.

Not trusted: the program (any pointer, any length) and the answer (outs that were not offered, or longer).
"""

import errno
import struct
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Protocol

from stepping.errors import MemoryFaultError
from stepping.syscalls.marshal_messages import (
    RefusedMessageError,
    Vector,
    find_messages,
    offers,
    read_messages,
    write_received,
    write_sent,
)
from stepping.syscalls.model import Arch, Arg, ArgKind, Length, Syscall
from stepping.syscalls.requests import request_argument

#: The most bytes that one buffer of a call carries; a longer transfer becomes a short one, as the kernel's own
#: calls may be short.
MAX_TRANSFER_BYTES = 8 << 20

_MAX_STRING_BYTES = 4096  # PATH_MAX
_MAX_ARGUMENT_BYTES = 32 * 4096  # MAX_ARG_STRLEN
_MAX_ARGUMENTS_BYTES = 2 << 20  # ARG_MAX at the default stack limit
_MAX_IOVECS = 1024  # UIO_MAXIOV

_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_IOVEC = struct.Struct("=QQ")

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
    the buffers that an out-vector scatters to; messages: by argument index, what puts back what became of socket
    messages, which travel as `stepping.syscalls.socket_messages` has it.
    """

    args: Args
    ins: dict[int, bytes]
    outs: dict[int, int]
    iovecs: dict[int, Vector]
    messages: Mapping[int, "PutBack"] = MappingProxyType({})


PutBack = Callable[[bytes, ProgramMemory], None]
_Step = Callable[[Gathered, ProgramMemory], Gathered]
_steps: dict[tuple[str, Arch], tuple[_Step, ...]] = {}


def gather(row: Syscall, args: Args, memory: ProgramMemory, arch: Arch = "amd64") -> Gathered:
    """Copy what the call *row* with registers *args* reads from *memory*.

    A null pointer is in neither ins nor outs. arch: whose struct sizes the program uses.

    Raises:
        BadArgumentError: an unreadable pointer (EFAULT), an overlong string (ENAMETOOLONG) or vector (EINVAL).
    """
    key = row.name, arch
    steps = _steps.get(key)
    if steps is None:
        steps = _steps[key] = _compile(row, arch)
    call = Gathered(args, {}, {}, {})
    try:
        for step in steps:
            call = step(call, memory)
    except MemoryFaultError as error:
        raise BadArgumentError(errno.EFAULT) from error
    except RefusedMessageError as error:
        raise BadArgumentError(error.errno) from error
    return call


def scatter(call: Gathered, outs: dict[int, bytes], memory: ProgramMemory) -> None:
    """Write *outs*, the bytes that the call filled, by argument index, to where its pointers lead.

    Bytes beyond what was offered, and arguments that offered nothing, are not written.

    Raises:
        BadArgumentError: EFAULT, a pointer cannot be written to.
    """
    try:
        for index, data in outs.items():
            room = call.outs.get(index, 0)
            if index in call.iovecs:
                _scatter_vector(call.iovecs[index], data[:room], memory)
            elif index in call.messages:
                call.messages[index](data[:room], memory)
            elif room and data != call.ins.get(index):  # an inout buffer is written where it changed
                memory.write(call.args[index], data if len(data) <= room else data[:room])
    except MemoryFaultError as error:
        raise BadArgumentError(errno.EFAULT) from error


def _compile(row: Syscall, arch: Arch) -> tuple[_Step, ...]:
    """Return a step for each argument of *row* that is followed; none for those that are just addresses."""
    steps = []
    for index, arg in enumerate(row.args):
        make = _MAKERS.get(arg.kind)
        if make is not None:
            steps.append(make(row, index, arg, arch))
    return tuple(steps)


def _out(row: Syscall, index: int, arg: Arg, arch: Arch) -> _Step:
    size_of = _size_of(row, arg.length, arch)
    count_index = arg.length.arg if arg.length is not None else None
    if count_index is not None and _is_plain_count(row, arg.length):

        def read_like(call: Gathered, memory: ProgramMemory) -> Gathered:
            args = call[0]
            if args[index]:
                size = args[count_index]
                if size > MAX_TRANSFER_BYTES:
                    call, size = _shortened(call, arg.length, arch)
                call[2][index] = size
            return call

        return read_like

    def step(call: Gathered, memory: ProgramMemory) -> Gathered:
        if call.args[index]:
            size = size_of(call.args, memory)
            if size > MAX_TRANSFER_BYTES:
                call, size = _shortened(call, arg.length, arch)
            call.outs[index] = size
        return call

    return step


def _in(row: Syscall, index: int, arg: Arg, arch: Arch) -> _Step:
    size_of = _size_of(row, arg.length, arch)
    returns = arg.kind is ArgKind.INOUT

    def step(call: Gathered, memory: ProgramMemory) -> Gathered:
        address = call.args[index]
        if address:
            size = size_of(call.args, memory)
            if size > MAX_TRANSFER_BYTES:
                call, size = _shortened(call, arg.length, arch)
            call.ins[index] = memory.read(address, size)
            if returns:
                call.outs[index] = size
        return call

    return step


def _string(row: Syscall, index: int, arg: Arg, arch: Arch) -> _Step:
    def step(call: Gathered, memory: ProgramMemory) -> Gathered:
        address = call.args[index]
        if address:
            try:
                call.ins[index] = memory.read_string(address, _MAX_STRING_BYTES)
            except ValueError as error:
                raise BadArgumentError(errno.ENAMETOOLONG) from error
        return call

    return step


def _strings(row: Syscall, index: int, arg: Arg, arch: Arch) -> _Step:
    def step(call: Gathered, memory: ProgramMemory) -> Gathered:
        address = call.args[index]
        if address:
            call.ins[index] = b"\0".join(_read_strings(address, memory))
        return call

    return step


def _vector(row: Syscall, index: int, arg: Arg, arch: Arch) -> _Step:
    count_of = _size_of(row, arg.length, arch)
    is_read = arg.kind is ArgKind.IOV_IN

    def step(call: Gathered, memory: ProgramMemory) -> Gathered:
        address = call.args[index]
        if address:
            vector = _read_vector(address, count_of(call.args, memory), MAX_TRANSFER_BYTES, memory)
            if is_read:
                call.ins[index] = b"".join([memory.read(base, size) for base, size in vector])
            else:
                call.outs[index] = sum(size for _, size in vector)
                call.iovecs[index] = vector
        return call

    return step


def _messages(row: Syscall, index: int, arg: Arg, arch: Arch) -> _Step:
    is_array = arg.length is not None
    count_of = _size_of(row, arg.length, arch)
    is_sent = arg.kind in (ArgKind.MSG_IN, ArgKind.MMSG_IN)

    def step(call: Gathered, memory: ProgramMemory) -> Gathered:
        address = call.args[index]
        if not address:
            return call
        count = count_of(call.args, memory) if is_array else None
        places = find_messages(address, count, MAX_TRANSFER_BYTES, memory, _read_vector)
        if is_sent:
            call.ins[index] = read_messages(places, memory)
            if not is_array:
                return call
            call.outs[index] = _U32.size * len(places)
        else:
            call.ins[index], call.outs[index] = offers(places)
        return call._replace(messages={index: partial(write_sent if is_sent else write_received, places)})

    return step


def _signal_set(row: Syscall, index: int, arg: Arg, arch: Arch) -> _Step:
    def step(call: Gathered, memory: ProgramMemory) -> Gathered:
        address = call.args[index]
        if address:
            target, size = _IOVEC.unpack(memory.read(address, _IOVEC.size))
            if target:
                call.ins[index] = memory.read(target, min(size, 128))
        return call

    return step


def _request_argument(row: Syscall, index: int, arg: Arg, arch: Arch) -> _Step:
    assert arg.length is not None
    request_index = arg.length.arg
    assert request_index is not None

    def step(call: Gathered, memory: ProgramMemory) -> Gathered:
        address = call.args[index]
        sizes = request_argument(row.name, call.args[request_index] & 0xFFFFFFFF)
        if address and sizes is not None:
            in_bytes, out_bytes = sizes
            if in_bytes:
                call.ins[index] = memory.read(address, in_bytes)
            if out_bytes:
                call.outs[index] = out_bytes
        return call

    return step


_MAKERS: dict[ArgKind, Callable[[Syscall, int, Arg, Arch], _Step]] = {
    ArgKind.OUT: _out,
    ArgKind.IN: _in,
    ArgKind.INOUT: _in,
    ArgKind.PATH: _string,
    ArgKind.STR: _string,
    ArgKind.STRV: _strings,
    ArgKind.IOV_IN: _vector,
    ArgKind.IOV_OUT: _vector,
    ArgKind.MSG_IN: _messages,
    ArgKind.MSG_OUT: _messages,
    ArgKind.MMSG_IN: _messages,
    ArgKind.MMSG_OUT: _messages,
    ArgKind.SIGSET_REF: _signal_set,
    ArgKind.REQUEST_ARG: _request_argument,
}


def _is_plain_count(row: Syscall, length: Length | None) -> bool:
    """Whether the length is just the value of another, 64-bit argument, as read's and write's is."""
    if length is None or length.arg is None or length.arg < 0 or length != Length(length.arg):
        return False
    return row.args[length.arg].kind not in (ArgKind.INT, ArgKind.UINT)


def _size_of(row: Syscall, length: Length | None, arch: Arch) -> Callable[[Args, ProgramMemory], int]:
    """Return a function from registers to the size (or count) that *length* stands for, never negative."""
    if length is None:
        return lambda args, memory: 0
    of, arg, offset = length.of, length.arg, length.offset
    if arg is None:
        constant = of(1, arch)
        return lambda args, memory: constant
    if length.indirect:

        def indirect(args: Args, memory: ProgramMemory) -> int:
            address = args[arg]
            return of(_U32.unpack(memory.read(address + offset, 4))[0], arch) if address else 0

        return indirect
    if _is_plain_count(row, length):
        return lambda args, memory: args[arg]
    if row.args[arg].kind not in (ArgKind.INT, ArgKind.UINT):
        return lambda args, memory: of(args[arg], arch)

    def narrow(args: Args, memory: ProgramMemory) -> int:
        value = args[arg] & 0xFFFFFFFF
        return 0 if value >> 31 else of(value, arch)

    return narrow


def _shortened(call: Gathered, length: Length | None, arch: Arch) -> tuple[Gathered, int]:
    """Return *call* with the register that *length* depends on cut, so that the buffer is not too large."""
    if length is None or length.arg is None or length.indirect or length.bits:
        return call, MAX_TRANSFER_BYTES
    items = (MAX_TRANSFER_BYTES - length.base) // length.scale
    a0, a1, a2, a3, a4, a5 = (items if i == length.arg else value for i, value in enumerate(call.args))
    return call._replace(args=(a0, a1, a2, a3, a4, a5)), length.of(items, arch)


def _read_vector(address: int, count: int, room: int, memory: ProgramMemory) -> Vector:
    """Return (base, size) of the buffers, in total at most *room* bytes, empty ones left out."""
    if count > _MAX_IOVECS:
        raise BadArgumentError(errno.EINVAL)
    vector: Vector = []
    for base, size in _IOVEC.iter_unpack(memory.read(address, _IOVEC.size * count)):
        if size >> 63:
            raise BadArgumentError(errno.EINVAL)
        if size and room:
            vector.append((base, min(size, room)))
            room -= vector[-1][1]
    return vector


def _scatter_vector(vector: Vector, data: bytes, memory: ProgramMemory) -> None:
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
        (pointer,) = _U64.unpack(memory.read(address + _U64.size * len(strings), _U64.size))
        if not pointer:
            return strings
        try:
            strings.append(memory.read_string(pointer, _MAX_ARGUMENT_BYTES))
        except ValueError as error:
            raise BadArgumentError(errno.E2BIG) from error
        total += len(strings[-1]) + 1 + _U64.size
        if total > _MAX_ARGUMENTS_BYTES:
            raise BadArgumentError(errno.E2BIG)
