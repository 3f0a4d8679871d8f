"""Decodes whole calls, from the table alone: to text in strace's manner, and to plain values for JSON.

    format_call(...)  ->  openat(AT_FDCWD, "/etc/hosts", O_RDONLY|O_CLOEXEC) = 3
    decode_call(...)  ->  {"args": {"dirfd": "AT_FDCWD", "path": "/etc/hosts", ...}, "value": 3}

The parameters are the same everywhere. row: the call's row; args: its registers, unsigned 64-bit, at least as many
as the row has arguments; ins, outs: by argument index, the bytes that the call reads (paths without their NUL,
vectors joined) and has filled, each possibly only their beginning; a missing one is shown as an address.
value: what the call returned (signed), or None if it did not return; errno: 0 or the error's number.
limit: how many bytes of a string are shown (strace's -s).

Not trusted: any of these. Whatever the numbers and bytes are, there is an answer and no exception.
Thread rules: any thread may call these.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepping.syscalls.decode_buffers import find_buffer
from stepping.syscalls.decode_scalars import Scalar, find_scalar, signed
from stepping.syscalls.decode_special import (
    SPECIAL_ARGUMENTS,
    SPECIAL_RESULTS,
    Call,
    SpecialArgument,
    decode_request_argument,
)
from stepping.syscalls.decode_values import (
    Change,
    Data,
    Hex,
    Node,
    Partial,
    Symbol,
    Vector,
    Whole,
    to_plain,
    to_text,
)
from stepping.syscalls.errno_names import errno_name, errno_text, is_restart
from stepping.syscalls.model import RESULT, Arch, Arg, ArgKind, Length, ResultKind, Syscall
from stepping.syscalls.structs import BufferDecoder

#: How many bytes of a string are shown if nobody says otherwise.
DEFAULT_LIMIT = 32

_AT_FDCWD = -100

#: Decodes one argument of a call from its registers, ins, outs, value and errno.
Getter = Callable[[Sequence[int], Mapping[int, bytes], Mapping[int, bytes], int | None, int], Node]

#: Returned instead of a node for an argument that this call does not have.
ABSENT = object()


def format_call(
    row: Syscall,
    args: Sequence[int],
    ins: Mapping[int, bytes],
    outs: Mapping[int, bytes],
    value: int | None,
    errno: int,
    *,
    limit: int = DEFAULT_LIMIT,
    arch: Arch = "amd64",
) -> str:
    """Return the call and its result as one line of text, without a newline."""
    arguments = format_arguments(row, args, ins, outs, value, errno, limit=limit, arch=arch)
    return f"{row.name}({arguments}) = {format_result(row, args, value, errno)}"


def format_arguments(
    row: Syscall,
    args: Sequence[int],
    ins: Mapping[int, bytes],
    outs: Mapping[int, bytes],
    value: int | None,
    errno: int,
    *,
    limit: int = DEFAULT_LIMIT,
    arch: Arch = "amd64",
) -> str:
    """Return the arguments alone, as between the parentheses of `format_call`."""
    shown = []
    for _, getter in _plans[arch].get(row.name) or _plan(row, arch):
        node = getter(args, ins, outs, value, errno)
        if type(node) is int:  # the most frequent, the cheapest way
            shown.append(str(node))
        elif node is not ABSENT:
            shown.append(to_text(node, limit))
    return ", ".join(shown)


def format_result(row: Syscall, args: Sequence[int], value: int | None, errno: int) -> str:
    """Return the result alone, as behind the equals sign of `format_call`."""
    if errno:
        returned = "?" if is_restart(errno) else "-1"
        return f"{returned} {errno_name(errno)} ({errno_text(errno)})"
    if value is None:
        return "?"
    special = SPECIAL_RESULTS.get(row.name)
    if special is not None:
        text = special(args, value)
        if text is not None:
            return text
    if row.result is ResultKind.PTR:
        return hex(value & (1 << 64) - 1) if value else "NULL"
    return str(value)


def decode_call(
    row: Syscall,
    args: Sequence[int],
    ins: Mapping[int, bytes],
    outs: Mapping[int, bytes],
    value: int | None,
    errno: int,
    *,
    limit: int = DEFAULT_LIMIT,
    arch: Arch = "amd64",
) -> dict[str, Any]:
    """Return the call as plain values, ready for JSON.

    `args`: by name, each argument that the call has: numbers; names as strings; flags as lists of names; addresses
    and file modes as strings in base 16 and 8; structs as objects; strings as `to_plain` says.
    `value`: what it returned, or null; `errno`: the error's name, only if it failed.
    """
    decoded: dict[str, Any] = {}
    for name, getter in _plans[arch].get(row.name) or _plan(row, arch):
        node = getter(args, ins, outs, value, errno)
        if type(node) is int:
            decoded[name] = node
        elif node is not ABSENT:
            decoded[name] = to_plain(node, limit)
    result: dict[str, Any] = {"args": decoded, "value": value}
    if errno:
        result["value"] = None if is_restart(errno) else -1
        result["errno"] = errno_name(errno)
    return result


def argument_getters(row: Syscall, arch: Arch = "amd64") -> tuple[Getter, ...]:
    """Return what decodes each argument of a call: of args, ins, outs, value and errno, to a node or `ABSENT`."""
    return tuple(getter for _, getter in _plans[arch].get(row.name) or _plan(row, arch))


_plans: dict[Arch, dict[str, tuple[tuple[str, Getter], ...]]] = {"amd64": {}, "arm64": {}}


def _plan(row: Syscall, arch: Arch) -> tuple[tuple[str, Getter], ...]:
    plan = tuple((arg.name, _make_getter(row, index, arg, arch)) for index, arg in enumerate(row.args))
    if row.numbers:  # calls that the table lacks have as many names as a program likes
        _plans[arch][row.name] = plan
    return plan


def _make_getter(row: Syscall, index: int, arg: Arg, arch: Arch) -> Getter:
    if arg.decoder == "ignored":
        return lambda args, ins, outs, value, errno: ABSENT
    special = SPECIAL_ARGUMENTS.get(arg.decoder)
    if special is not None:
        return _special_getter(row, index, special, arch)
    match arg.kind:
        case (
            ArgKind.INT
            | ArgKind.UINT
            | ArgKind.LONG
            | ArgKind.SIZE
            | ArgKind.FD
            | ArgKind.DIRFD
            | ArgKind.PTR
        ):
            return _number_getter(index, arg, arch)
        case ArgKind.PATH:
            return _string_getter(index, whole=True)
        case ArgKind.STR:
            return _string_getter(index, whole=False)
        case ArgKind.STRV:
            return _strings_getter(index, count_only=arg.decoder == "environment")
        case ArgKind.IOV_IN | ArgKind.IOV_OUT:
            return _vector_getter(index, arg)
        case ArgKind.IN | ArgKind.SIGSET_REF | ArgKind.MSG_IN | ArgKind.MMSG_IN:
            return _in_getter(row, index, arg, arch)
        case ArgKind.OUT | ArgKind.MSG_OUT | ArgKind.MMSG_OUT:
            return _out_getter(index, arg, arch)
        case ArgKind.INOUT:
            return _inout_getter(index, arg, arch)
        case ArgKind.REQUEST_ARG:
            return _special_getter(row, index, decode_request_argument, arch)


#: Buffers whose contents after the call say all that they said before.
_ONLY_AFTER = frozenset({"pollfds", "timex"})

_BITS = {ArgKind.LONG: 64, ArgKind.SIZE: 64, ArgKind.PTR: 64}


def _special_getter(row: Syscall, index: int, special: SpecialArgument, arch: Arch) -> Getter:
    return lambda args, ins, outs, value, errno: special(
        Call(row, args, ins, outs, value, errno, arch), index, ABSENT
    )


def _number_getter(index: int, arg: Arg, arch: Arch) -> Getter:
    bits = _BITS.get(arg.kind, 32)
    scalar = find_scalar(arg.decoder, bits, arch) if arg.decoder else None
    if scalar is not None:
        return _scalar_getter(index, scalar, (1 << bits) - 1)
    match arg.kind:
        case ArgKind.PTR:
            return lambda args, ins, outs, value, errno: Hex(args[index]) if args[index] else None
        case ArgKind.SIZE:
            return lambda args, ins, outs, value, errno: args[index]
        case ArgKind.UINT:
            return lambda args, ins, outs, value, errno: args[index] & 0xFFFFFFFF
        case ArgKind.DIRFD:
            return _directory_getter(index)
        case ArgKind.LONG:
            return lambda args, ins, outs, value, errno: signed(args[index], 64)
        case _:
            return lambda args, ins, outs, value, errno: signed(args[index], 32)


def _scalar_getter(index: int, scalar: Scalar, mask: int) -> Getter:
    return lambda args, ins, outs, value, errno: scalar(args[index] & mask)


def _directory_getter(index: int) -> Getter:
    def get(
        args: Sequence[int],
        ins: Mapping[int, bytes],
        outs: Mapping[int, bytes],
        value: int | None,
        errno: int,
    ) -> Node:
        number = signed(args[index], 32)
        return Symbol("AT_FDCWD") if number == _AT_FDCWD else number

    return get


def _string_getter(index: int, whole: bool) -> Getter:
    def get(
        args: Sequence[int],
        ins: Mapping[int, bytes],
        outs: Mapping[int, bytes],
        value: int | None,
        errno: int,
    ) -> Node:
        data = ins.get(index)
        if data is None:
            return _address(args[index])
        return Whole(data) if whole else data

    return get


def _strings_getter(index: int, count_only: bool) -> Getter:
    def get(
        args: Sequence[int],
        ins: Mapping[int, bytes],
        outs: Mapping[int, bytes],
        value: int | None,
        errno: int,
    ) -> Node:
        data = ins.get(index)
        if data is None:
            return _address(args[index])
        strings = data.split(b"\0") if data else []
        if not count_only:
            return strings
        return Symbol(f"{args[index]:#x} /* {len(strings)} vars */")

    return get


def _vector_getter(index: int, arg: Arg) -> Getter:
    is_out = arg.kind is ArgKind.IOV_OUT
    count_index = arg.length.arg if arg.length and arg.length.arg is not None else index

    def get(
        args: Sequence[int],
        ins: Mapping[int, bytes],
        outs: Mapping[int, bytes],
        value: int | None,
        errno: int,
    ) -> Node:
        returned = 0 if errno else value or 0
        data = (outs if is_out else ins).get(index)
        if data is None or not args[index] or (is_out and errno):
            return _address(args[index])
        size = returned if is_out else max(len(data), returned)
        return Vector(Data(data, size), args[count_index] & 0xFFFFFFFF)

    return get


def _in_getter(row: Syscall, index: int, arg: Arg, arch: Arch) -> Getter:
    decode = _buffer_decoder(arg, arch)
    length = arg.length if arg.length and arg.length.arg is not None and not arg.length.indirect else None
    mask = _register_mask(row, length)

    def get(
        args: Sequence[int],
        ins: Mapping[int, bytes],
        outs: Mapping[int, bytes],
        value: int | None,
        errno: int,
    ) -> Node:
        data = ins.get(index)
        if data is None:
            return _address(args[index])
        if decode is not None:
            return decode(data, arch)
        if length is None or length.arg is None:
            return data
        return Data(data, length.of(args[length.arg] & mask, arch))

    return get


def _register_mask(row: Syscall, length: Length | None) -> int:
    if length is None or length.arg is None or row.args[length.arg].kind in _BITS:
        return (1 << 64) - 1
    return (1 << 32) - 1


def _out_getter(index: int, arg: Arg, arch: Arch) -> Getter:
    decode = _buffer_decoder(arg, arch)
    valid = arg.valid if arg.valid and arg.valid.arg == RESULT else None

    def get(
        args: Sequence[int],
        ins: Mapping[int, bytes],
        outs: Mapping[int, bytes],
        value: int | None,
        errno: int,
    ) -> Node:
        data = outs.get(index)
        if errno or value is None:
            return _address(args[index])
        if data is None:
            if value or not (valid and args[index]):
                return _address(args[index])
            data = b""
        size = valid.of(value, arch) if valid else len(data)
        if len(data) > size:
            data = data[:size]
        if decode is None:
            return Data(data, size)
        return decode(data, arch) if len(data) == size else Partial(decode(data, arch), size)

    return get


def _inout_getter(index: int, arg: Arg, arch: Arch) -> Getter:
    decode = _buffer_decoder(arg, arch) or _plain_data
    only_after = arg.decoder in _ONLY_AFTER

    def get(
        args: Sequence[int],
        ins: Mapping[int, bytes],
        outs: Mapping[int, bytes],
        value: int | None,
        errno: int,
    ) -> Node:
        before, after = ins.get(index), outs.get(index)
        if before is None and after is None:
            return _address(args[index])
        if before is None or (after is not None and only_after):
            return decode(after or b"", arch)
        if after is None or after == before:
            return decode(before, arch)
        return Change(decode(before, arch), decode(after, arch))

    return get


def _buffer_decoder(arg: Arg, arch: Arch) -> BufferDecoder | None:
    return find_buffer(arg.decoder, arch) if arg.decoder else None


def _plain_data(data: bytes, arch: Arch) -> Node:
    return data


def _address(address: int) -> Node:
    return Hex(address) if address else None
