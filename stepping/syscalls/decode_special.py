"""Decodes the arguments and results whose meaning depends on other arguments of the same call.

Not trusted: any number and any bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from stepping.syscalls.decode_buffers import find_buffer
from stepping.syscalls.decode_scalars import find_scalar, signed
from stepping.syscalls.decode_values import Change, Flags, Hex, Node, Symbol, to_text
from stepping.syscalls.flags import find_names
from stepping.syscalls.model import Arch, Syscall
from stepping.syscalls.requests import find_request

_O_CREAT, _O_TMPFILE = 0o100, 0o20000000
_FUTEX_COMMAND = 0x7F


class Call(NamedTuple):
    """A call that is being decoded; the fields are the parameters of `decode.format_call`."""

    row: Syscall
    args: Sequence[int]
    ins: Mapping[int, bytes]
    outs: Mapping[int, bytes]
    value: int | None
    errno: int
    arch: Arch


#: Decodes the argument at an index of a call; returns the last parameter if the call does not have it.
SpecialArgument = Callable[[Call, int, object], Node]


def decode_request_argument(call: Call, index: int, absent: object) -> Node:
    """Return what the argument at *index* holds, which another argument's request decides."""
    length = call.row.args[index].length
    request_index = length.arg if length and length.arg is not None else 1
    request = find_request(call.row.name, call.args[request_index])
    value = call.args[index]
    before, after = call.ins.get(index), None if call.errno else call.outs.get(index)
    if before is None and after is None:
        if request is None or (request.sizes and value):
            return Hex(value)
        if request.sizes:
            return None
        if not request.decoder or request.decoder == "ignored":
            return absent
        scalar = find_scalar(request.decoder, 32, call.arch)
        return scalar(value & 0xFFFFFFFF) if scalar else Hex(value)
    decode = find_buffer(request.decoder if request else "hexdump", call.arch)
    nodes = [decode(data, call.arch) if decode else data for data in (before, after) if data is not None]
    if request is not None and request.sizes is not None and not request.sizes[0]:
        return nodes[-1]
    return nodes[0] if len(nodes) == 1 or before == after else Change(*nodes)


def _request_name(call: Call, index: int, absent: object) -> Node:
    number = call.args[index] & 0xFFFFFFFF
    request = find_request(call.row.name, number)
    if request is not None:
        return Symbol(request.name)
    if call.row.name != "ioctl":
        return signed(number, 32)
    direction = ("_IOC_NONE", "_IOC_WRITE", "_IOC_READ", "_IOC_READ|_IOC_WRITE")[number >> 30]
    return Symbol(
        f"_IOC({direction}, {number >> 8 & 0xFF:#x}, {number & 0xFF:#x}, {number >> 16 & 0x3FFF:#x})"
    )


def _futex_operation(call: Call, index: int, absent: object) -> Node:
    number = call.args[index] & 0xFFFFFFFF
    request = find_request("futex", number)
    names = find_names("futex_flags")
    flags = names.flags_of(number & ~_FUTEX_COMMAND) if names else ()
    command = request.name if request else hex(number & _FUTEX_COMMAND)
    if flags[:1] == ("FUTEX_PRIVATE_FLAG",):  # as the C macros have it
        command, flags = f"{command}_PRIVATE", flags[1:]
    return Flags((command, *flags))


def _mode_of_new_file(call: Call, index: int, absent: object) -> Node:
    flags = call.args[index - 1]
    if not flags & (_O_CREAT | _O_TMPFILE) or (flags & _O_TMPFILE and not call.row.name.startswith("open")):
        return absent
    scalar = find_scalar("mode", 32)
    return scalar(call.args[index] & 0xFFFFFFFF) if scalar else absent


_PROTOCOLS = {"AF_NETLINK": "netlink_protocol", "AF_INET": "socket_protocol", "AF_INET6": "socket_protocol"}


def _socket_protocol(call: Call, index: int, absent: object) -> Node:
    families = find_names("socket_family")
    family = families.name_of(call.args[0] & 0xFFFFFFFF) if families else None
    scalar = find_scalar(_PROTOCOLS.get(family or "", ""), 32)
    value = call.args[index] & 0xFFFFFFFF
    return scalar(value) if scalar else signed(value, 32)


_OPTIONS = {
    "SOL_SOCKET": "so_options",
    "SOL_TCP": "tcp_options",
    "SOL_IP": "ip_options",
    "SOL_IPV6": "ipv6_options",
}


def _option_name(call: Call) -> str:
    levels = find_names("socket_level")
    level = levels.name_of(call.args[1] & 0xFFFFFFFF) if levels else None
    options = find_names(_OPTIONS.get(level or "", ""))
    name = options.name_of(call.args[2] & 0xFFFFFFFF) if options else None
    return name or ""


def _socket_option(call: Call, index: int, absent: object) -> Node:
    name = _option_name(call)
    return Symbol(name) if name else signed(call.args[index], 32)


_OPTION_VALUES = {
    "SO_LINGER": "linger",
    "SO_PEERCRED": "ucred",
    "SO_RCVTIMEO": "timeval",
    "SO_SNDTIMEO": "timeval",
    "SO_BINDTODEVICE": "c_string",
    "TCP_CONGESTION": "c_string",
    "TCP_ULP": "c_string",
    "TCP_INFO": "hexdump",
    "SO_PEERNAME": "sockaddr",
}


def _socket_value(call: Call, index: int, absent: object) -> Node:
    is_get = call.row.name == "getsockopt"
    data = (call.outs if is_get and not call.errno else call.ins).get(index)
    if data is None or (is_get and call.errno):
        return Hex(call.args[index]) if call.args[index] else None
    decode = find_buffer(
        _OPTION_VALUES.get(_option_name(call)) or ("i32_box" if len(data) == 4 else "hexdump")
    )
    return decode(data, call.arch) if decode else data


#: By decoder name.
SPECIAL_ARGUMENTS: dict[str, SpecialArgument] = {
    "fcntl_cmd": _request_name,
    "ioctl_request": _request_name,
    "prctl_option": _request_name,
    "ipc_cmd": _request_name,
    "futex_op": _futex_operation,
    "open_mode": _mode_of_new_file,
    "socket_protocol": _socket_protocol,
    "socket_option": _socket_option,
    "socket_value": _socket_value,
}


#: By decoder name, the registers on which such an argument depends, counted from its own. Others depend on more.
_REGISTERS: dict[str, tuple[int, ...]] = {
    "fcntl_cmd": (0,),
    "ioctl_request": (0,),
    "prctl_option": (0,),
    "ipc_cmd": (0,),
    "futex_op": (0,),
    "open_mode": (-1, 0),
}


def special_registers(row: Syscall, index: int) -> tuple[int, ...]:
    """Return the registers that alone decide what the special argument at *index* is; none if more does."""
    return tuple(index + offset for offset in _REGISTERS.get(row.args[index].decoder, ()))


def _waited(args: Sequence[int], value: int) -> str | None:
    return None if value else "0 (Timeout)"


def _descriptor_flags(args: Sequence[int], value: int) -> str | None:
    request = find_request("fcntl", args[1])
    sets = {"F_GETFL": "open_flags", "F_GETFD": "fd_flags", "F_GET_SEALS": "seals"}
    scalar = find_scalar(sets.get(request.name if request else "", ""), 32)
    if scalar is None or value < 0 or (not value and request and request.name != "F_GETFL"):
        return None
    return f"{hex(value) if value else 0} (flags {to_text(scalar(value), 32)})"


def _octal(args: Sequence[int], value: int) -> str | None:
    return f"0{value & 0o7777:o}" if value else "0"


#: By syscall, what its value is called; None if it is a plain number this time.
SPECIAL_RESULTS: dict[str, Callable[[Sequence[int], int], str | None]] = {
    "fcntl": _descriptor_flags,
    "umask": _octal,
    "poll": _waited,
    "ppoll": _waited,
    "select": _waited,
    "pselect6": _waited,
    "exit": lambda args, value: "?",
    "exit_group": lambda args, value: "?",
}
