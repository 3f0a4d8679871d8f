"""Makes a call of the program in this process, generically, from what the syscall table says of it.

This is the only module that makes raw syscalls for a program. What the call reads is given as bytes and what
it may fill as sizes; both live at addresses of this process that the program does not choose. Where a
program's pointer came without its bytes, the call gets an address that nothing is mapped at, so that it fails
with EFAULT as it should.

Not trusted: any of it. A buffer is always as large as the kernel may use it with the registers it gets: a
count that says more than was offered is cut to it, as the kernel's own transfers may be short.

Thread rules: any thread may call `execute`; each has an arena of its own.
"""

import ctypes
import errno as errnos
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ptserver.shadow.execute_arena import Arena
from ptserver.shadow.execute_messages import MESSAGE_KINDS, Messages
from ptserver.shadow.raw_calls import CALLS
from stepping.syscalls import SYSCALLS
from stepping.syscalls.model import RESULT, Arch, Arg, ArgKind, Length, Syscall
from stepping.syscalls.requests import request_argument, request_is_bound

#: What a call returned (signed 64-bit), its errno or 0, and by argument index what it filled.
Executed = tuple[int, int, dict[int, bytes]]

ARCH: Arch = "arm64" if os.uname().machine == "aarch64" else "amd64"

#: An address that is never mapped: the first page is not (vm.mmap_min_addr).
_UNMAPPED = 8

#: Room that alignment takes, of a buffer and of the iovec or the pointers that lead to it.
_SLACK_BYTES = 2 * mmap.PAGESIZE
_SECTOR_BYTES = 512
_AT_SYMLINK_NOFOLLOW = 0x100
#: What is left of a negative 32-bit number, sign-extended to 64 bits, above its lowest 31 bits.
_NEGATIVE = (1 << 33) - 1

_IOVEC = struct.Struct("=QQ")
_POINTER = struct.Struct("=Q")
_U32 = struct.Struct("=I")

_NO_OUTS: dict[int, bytes] = {}


def execute(row: Syscall, args: Sequence[int], ins: dict[int, bytes], outs: dict[int, int]) -> Executed:
    """Make the call that *row* describes, and return what became of it.

    args: its registers (unsigned 64-bit), as many as the row has or more; ins: by argument index, what it
    reads; outs: by argument index, how many bytes may come back. What is returned is never more than that,
    and only as much as the call has filled. A failed call fills only what it was given to change.

    A call that the table cannot describe completely fails with ENOSYS. It may sleep, if the call does.
    """
    plan = _plans.get(row.name)
    if plan is None:
        plan = _plans[row.name] = _make_plan(row)
    if not plan.pointers:
        value = plan.function(plan.number, *args[: plan.arity])
        return (value, 0, _NO_OUTS) if value != -1 else (0, _get_errno(), _NO_OUTS)
    registers: list[int | bytes] = list(args[: plan.arity])
    if plan.plain is not None:
        index, count = plan.plain
        if plan.only_reads:
            data = ins.get(index)
            if data is not None and args[count] <= len(data):
                registers[index] = data
                value = plan.function(plan.number, *registers)
                if value != -1:
                    return value, 0, _NO_OUTS
                failure = _get_errno()
                if failure != errnos.EINVAL:
                    return 0, failure, _NO_OUTS
                registers[index] = args[index]  # below it is tried in another way
        elif args[count] <= outs.get(index, -1):
            return _fill_plain(plan, registers, index, outs[index])
    try:
        if not plan.only_reads:
            fill = _fill_many if plan.filled is None else _fill_one
            return fill(plan, registers, ins, outs)
        for index, arg in plan.pointers:
            registers[index] = _in_buffer(registers, index, arg, ins)
    except _RefusedError as refusal:
        return 0, refusal.errno, _NO_OUTS
    value = plan.function(plan.number, *registers)
    if value != -1:
        return value, 0, _NO_OUTS
    failure = _get_errno()
    if failure == errnos.EINVAL and _align(
        plan, registers
    ):  # nothing was done: O_DIRECT may have been the reason
        value = plan.function(plan.number, *registers)
        return (value, 0, _NO_OUTS) if value != -1 else (0, _get_errno(), _NO_OUTS)
    return 0, failure, _NO_OUTS


def attributes(folder: int, names: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the *names* that stand for something in *folder*, a descriptor, each with its struct stat.

    That is what newfstatat(2) gives when it follows no link, several times as fast as `execute`.
    """
    row = SYSCALLS["newfstatat"]
    length = row.args[2].length
    assert length is not None
    buffer = ctypes.create_string_buffer(length.of(arch=ARCH))
    address = ctypes.addressof(buffer)
    number = row.numbers[ARCH]
    for name in names:
        if CALLS[6](number, folder, name, address, _AT_SYMLINK_NOFOLLOW, 0, 0) == 0:
            yield name, buffer.raw


class _RefusedError(Exception):
    """The registers and buffers do not go together; the kernel would say *errno* to such a program."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class _Plan(NamedTuple):
    """A row made ready.

    pointers: the arguments that point somewhere, by index; only_reads: the call fills none of them; filled:
    the index of the only argument in the arena, if it is a plain out-buffer whose size registers tell; plain: the
    indexes of the only pointer and of its size in bytes, if the call reads so much, or fills as much as it returns.
    """

    row: Syscall
    number: int
    arity: int
    function: Callable[..., int]
    pointers: tuple[tuple[int, Arg], ...]
    only_reads: bool
    filled: int | None = None
    plain: tuple[int, int] | None = None


class _Buffer(NamedTuple):
    """A pointer's target in the arena.

    size: how much the kernel may use of it; back: how many bytes of it may go back; data: what it holds
    before the call; extra: how many bytes of the arena its pointers take; messages: if it is of such.
    """

    position: int
    arg: Arg
    size: int
    back: int
    data: bytes
    extra: int = 0
    messages: Messages | None = None


_plans: dict[str, _Plan] = {}
_arenas = threading.local()
_get_errno = ctypes.get_errno


def _no_such_call(*_args: object) -> int:
    ctypes.set_errno(errnos.ENOSYS)
    return -1


_READ_ONLY = frozenset({ArgKind.PATH, ArgKind.STR, ArgKind.IN, ArgKind.PTR, ArgKind.SIGSET_REF})
_STRINGS = frozenset({ArgKind.PATH, ArgKind.STR})


def _make_plan(row: Syscall) -> _Plan:
    pointers = tuple(
        (index, _without_mask(row, arg)) for index, arg in enumerate(row.args) if arg.kind.is_pointer
    )
    number = row.numbers.get(ARCH)
    arity = len(row.args)
    if number is None or row.bound:
        return _Plan(row, -1, 0, _no_such_call, (), True)
    in_arena = [(index, arg) for index, arg in pointers if arg.kind not in _READ_ONLY]
    filled = None
    if len(in_arena) == 1 and in_arena[0][1].kind is ArgKind.OUT:
        lengths = (in_arena[0][1].length, in_arena[0][1].valid)
        if not any(length is not None and length.indirect for length in lengths):
            filled = in_arena[0][0]
    return _Plan(row, number, arity, CALLS[arity], pointers, not in_arena, filled, _plain(row, pointers))


def _plain(row: Syscall, pointers: tuple[tuple[int, Arg], ...]) -> tuple[int, int] | None:
    """Return `_Plan.plain`: read, write and their like are by far the most frequent calls."""
    if len(pointers) != 1:
        return None
    index, arg = pointers[0]
    length = arg.length
    if length is None or length.arg is None or length != Length(length.arg):
        return None
    if arg.kind is ArgKind.OUT:
        return (index, length.arg) if arg.valid == Length(RESULT) else None
    return (
        (index, length.arg) if arg.kind is ArgKind.IN and row.args[length.arg].kind is ArgKind.SIZE else None
    )


def _without_mask(row: Syscall, arg: Arg) -> Arg:
    """Mark the mask with which a call waits: it is about the program's signals, and this process keeps its own."""
    is_mask = row.may_wait and arg.decoder == "sigset"
    return arg._replace(kind=ArgKind.SIGSET_REF) if is_mask else arg


def _in_buffer(registers: list[int | bytes], index: int, arg: Arg, ins: dict[int, bytes]) -> int | bytes:
    """Return what to pass for an argument that the kernel only reads."""
    if arg.kind is ArgKind.SIGSET_REF:
        return 0
    data = ins.get(index)
    if data is None or arg.kind is ArgKind.PTR:
        return _UNMAPPED if registers[index] else 0
    if arg.kind in _STRINGS and b"\0" in data:
        raise _RefusedError(errnos.EINVAL)  # whoever judged it by its end would have judged another string
    if arg.kind is ArgKind.IN and _fitted(registers, arg, len(data), ins) > len(data):
        return _UNMAPPED
    return data


def _align(plan: _Plan, registers: list[int | bytes]) -> bool:
    """Move a buffer of whole sectors to where direct I/O takes it from; return whether there was one."""
    for index, arg in plan.pointers:
        data = registers[index]
        if arg.kind is ArgKind.IN and isinstance(data, bytes) and data and not len(data) % _SECTOR_BYTES:
            arena = _arena()
            arena.reserve(len(data) + _SLACK_BYTES)
            offset = arena.take(len(data))
            arena.memory[offset : offset + len(data)] = data
            registers[index] = arena.address + offset
            return True
    return False


def _fitted(registers: list[int | bytes], arg: Arg, room: int, ins: dict[int, bytes]) -> int:
    """Return how many bytes of a buffer the kernel may use; a count that says more than *room* is cut to it.

    Only a constant size is returned above *room*.
    Raises: _RefusedError, if a size cannot be cut.
    """
    length = arg.length
    if length is None:
        return room
    if length.arg is None:
        return length.of(arch=ARCH)
    if length.indirect:
        words = ins.get(length.arg, b"")
        end = length.offset + _U32.size
        if len(words) >= end and length.of(_U32.unpack_from(words, length.offset)[0], ARCH) > room:
            if length.base or length.bits:
                raise _RefusedError(errnos.EINVAL)
            cut = _U32.pack(room // length.scale)
            ins[length.arg] = words[: length.offset] + cut + words[end:]
        return room
    count = registers[length.arg]
    assert isinstance(count, int)  # the table's counts are numbers
    if length.bits or length.base or length.scale_arm64:
        if length.of(count, ARCH) > room:
            raise _RefusedError(errnos.EINVAL)
    elif count * length.scale > room:
        if count >> 63:
            raise _RefusedError(errnos.EINVAL)  # negative, and refused so by every call
        registers[length.arg] = room // length.scale
    return room


def _fill_plain(plan: _Plan, registers: list[int | bytes], index: int, size: int) -> Executed:
    """Make a call that fills one buffer of *size* bytes, and no more of it than it returns."""
    arena = _arena()
    arena.reserve(size + _SLACK_BYTES)
    offset = arena.take(size)
    registers[index] = arena.address + offset
    value = plan.function(plan.number, *registers)
    if value == -1:
        return 0, _get_errno(), _NO_OUTS
    filled = arena.memory[offset : offset + min(value, size)]
    return value, 0, {index: filled} if filled else _NO_OUTS


def _fill_one(
    plan: _Plan, registers: list[int | bytes], ins: dict[int, bytes], outs: dict[int, int]
) -> Executed:
    """Make a call that fills one plain buffer: what `_fill_many` does, for the most frequent calls."""
    offset = back = 0
    arena = _arena()
    for index, arg in plan.pointers:
        if index != plan.filled:
            registers[index] = _in_buffer(registers, index, arg, ins)
        elif index in outs:
            back = outs[index]
            size = max(_fitted(registers, arg, back, ins), back)
            arena.reserve(size + _SLACK_BYTES)
            offset = arena.take(size)
            registers[index] = arena.address + offset
        elif registers[index]:
            registers[index] = _UNMAPPED
    value = plan.function(plan.number, *registers)
    if value == -1:
        return 0, _get_errno(), _NO_OUTS
    if back:
        valid = plan.row.args[plan.filled or 0].valid
        if valid is not None and valid.arg == RESULT:
            back = min(back, valid.of(value, ARCH))
        if back:
            return value, 0, {plan.filled or 0: arena.memory[offset : offset + back]}
    return value, 0, _NO_OUTS


def _arena() -> Arena:
    try:
        arena: Arena = _arenas.arena
    except AttributeError:
        arena = _arenas.arena = Arena()
    return arena


def _fill_many(
    plan: _Plan, registers: list[int | bytes], ins: dict[int, bytes], outs: dict[int, int]
) -> Executed:
    """Make a call that has buffers in the arena: those it fills, vectors, and what requests describe."""
    buffers: list[_Buffer] = []
    total = 0
    ins = dict(ins)  # indirect sizes may be cut
    for index, arg in plan.pointers:
        if arg.kind in _READ_ONLY:
            registers[index] = _in_buffer(registers, index, arg, ins)
            continue
        buffer = _buffer(plan.row, registers, index, arg, ins, outs)
        if buffer is not None:
            buffers.append(buffer)
            total += buffer.size + buffer.extra + _SLACK_BYTES
    arena = _arena()
    arena.reserve(total)
    offsets = [_place(arena, registers, buffer, ins) for buffer in buffers]
    value = plan.function(plan.number, *registers)
    failure = _get_errno() if value == -1 else 0
    filled: dict[int, bytes] = {}
    memory = arena.memory
    for buffer, offset in zip(buffers, offsets, strict=True):
        if buffer.back and (not failure or buffer.arg.kind is ArgKind.INOUT):
            size = buffer.back
            valid = buffer.arg.valid
            if valid is not None and not failure:
                size = min(size, _valid(valid, value, buffers, offsets, arena))
            if buffer.messages is not None:
                filled[buffer.position] = buffer.messages.collect(arena, value)
            elif size:
                filled[buffer.position] = memory[offset : offset + size]
    return (0, failure, filled) if failure else (value, 0, filled)


def _buffer(
    row: Syscall,
    registers: list[int | bytes],
    index: int,
    arg: Arg,
    ins: dict[int, bytes],
    outs: dict[int, int],
) -> _Buffer | None:
    """Return the buffer of an argument, or None after setting a register that needs none."""
    data, back = ins.get(index), outs.get(index, 0)
    kind = arg.kind
    if kind is ArgKind.REQUEST_ARG:
        return _request_buffer(row, registers, index, arg, data, outs)
    given = index in outs if kind in (ArgKind.OUT, ArgKind.IOV_OUT) else data is not None
    if not given:
        registers[index] = _UNMAPPED if registers[index] else 0
        return None
    if kind is ArgKind.OUT:
        return _Buffer(index, arg, max(_fitted(registers, arg, back, ins), back), back, b"")
    assert data is not None or kind is ArgKind.IOV_OUT
    data = data or b""
    if kind in MESSAGE_KINDS:
        try:
            messages = Messages(kind, data, back)
        except ValueError as error:
            raise _RefusedError(errnos.EINVAL) from error
        return _Buffer(index, arg, messages.size, back, b"", messages=messages)
    if kind is ArgKind.INOUT:
        size = _fitted(registers, arg, len(data), ins)
        if size > len(data):
            registers[index] = _UNMAPPED
            return None
        return _Buffer(index, arg, size, min(back, size), data)
    if kind in (ArgKind.IOV_IN, ArgKind.IOV_OUT):
        _check_vector_length(registers, arg)
    if kind is ArgKind.IOV_OUT:
        return _Buffer(index, arg, back, back, b"")
    if kind is ArgKind.STRV:
        return _Buffer(index, arg, len(data) + 1, 0, data, _POINTER.size * (data.count(0) + 2))
    return _Buffer(index, arg, len(data), 0, data)  # IOV_IN


def _check_vector_length(registers: list[int | bytes], arg: Arg) -> None:
    """Refuse a negative number of buffers, which is lost when all become one."""
    assert arg.length is not None
    assert arg.length.arg is not None
    count = registers[arg.length.arg]
    assert isinstance(count, int)
    if count & 0x80000000 and count >> 31 in (1, _NEGATIVE):
        raise _RefusedError(errnos.EINVAL)


def _request_buffer(
    row: Syscall,
    registers: list[int | bytes],
    index: int,
    arg: Arg,
    data: bytes | None,
    outs: dict[int, int],
) -> _Buffer | None:
    """Return the buffer of ioctl's or fcntl's third argument; None if it is a number."""
    assert arg.length is not None
    assert arg.length.arg is not None
    request = registers[arg.length.arg]
    assert isinstance(request, int)
    request &= 0xFFFFFFFF
    if request_is_bound(row.name, request):
        raise _RefusedError(errnos.ENOTTY if row.name == "ioctl" else errnos.ENOSYS)
    sizes = request_argument(row.name, request)
    if sizes is None:
        return None
    if (data is None and index not in outs) or len(data or b"") < sizes[0]:
        registers[index] = _UNMAPPED if registers[index] else 0
        return None
    back = outs.get(index, 0)
    return _Buffer(index, arg, max(len(data or b""), back, *sizes), back, data or b"")


def _place(arena: Arena, registers: list[int | bytes], buffer: _Buffer, ins: dict[int, bytes]) -> int:
    """Put a buffer into the arena, its address into its register, and return its offset."""
    index, arg, size, _, data, _, messages = buffer
    kind = arg.kind
    if messages is not None:
        registers[index] = messages.place(arena)
        if arg.length is not None and arg.length.arg is not None:
            registers[arg.length.arg] = messages.count
        return messages.at
    offset = arena.take(size)
    memory, address = arena.memory, arena.address + offset
    if kind is ArgKind.STRV:
        addresses = [address + start for start in _string_offsets(data)]
        vector = arena.take(_POINTER.size * (len(addresses) + 1))
        memory[offset : offset + size] = data + b"\0"
        struct.pack_into(f"={len(addresses) + 1}Q", memory, vector, *addresses, 0)
        registers[index] = arena.address + vector
        return offset
    if data:
        data = ins[index]  # a size in it may have been cut meanwhile
        memory[offset : offset + len(data)] = data
    if kind is ArgKind.IOV_IN or kind is ArgKind.IOV_OUT:
        vector = arena.take(_IOVEC.size)
        _IOVEC.pack_into(memory, vector, address, size)
        registers[index] = arena.address + vector
        assert arg.length is not None
        assert arg.length.arg is not None
        if registers[arg.length.arg]:
            registers[arg.length.arg] = 1
    else:
        registers[index] = address
    return offset


def _string_offsets(data: bytes) -> list[int]:
    """Return where each string of a joined vector begins."""
    offsets, offset = [], 0
    for string in data.split(b"\0") if data else []:
        offsets.append(offset)
        offset += len(string) + 1
    return offsets


def _valid(valid: Length, value: int, buffers: list[_Buffer], offsets: list[int], arena: Arena) -> int:
    """Return how many bytes a successful call has filled."""
    if valid.arg is None or valid.arg == RESULT:
        return valid.of(value, ARCH)
    for buffer, offset in zip(buffers, offsets, strict=True):
        if buffer.position == valid.arg and buffer.size >= valid.offset + _U32.size:
            return valid.of(_U32.unpack_from(arena.memory, offset + valid.offset)[0], ARCH)
    return 0
