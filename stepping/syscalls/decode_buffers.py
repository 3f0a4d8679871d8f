"""Decodes the buffers of calls by the decoder names of the table: structs, arrays of them, sets, addresses.

Not trusted: the bytes. Whatever they are, a decoder returns a node: what does not hold a whole struct comes
out as plain bytes.
"""

import struct
from functools import cache

from stepping.syscalls.decode_scalars import find_scalar, signal_name, signed
from stepping.syscalls.decode_values import Hex, Node, Record, Shown, Symbol, quote
from stepping.syscalls.flags import find_names
from stepping.syscalls.model import Arch
from stepping.syscalls.structs import BufferDecoder, Struct, struct_text

#: tv_nsec values of utimensat that are no time.
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

#: Bits of a wait status: the signal that ended it, and whether it left a core.
_SIGNAL_BITS, _CORE_BIT, _STOPPED, _CONTINUED = 0x7F, 0x80, 0x7F, 0xFFFF


@cache
def find_buffer(name: str, arch: Arch = "amd64") -> BufferDecoder | None:
    """Return the decoder of buffers called *name*; None if there is none."""
    special = _SPECIAL.get(name)
    if special is not None:
        return special
    array_of = _ARRAYS.get(name)
    text = struct_text(array_of or name, arch)
    if text is None:
        return None
    layout = Struct(text, arch, _find_field)
    return _array_decoder(layout) if array_of else _struct_decoder(layout)


def _find_field(name: str) -> BufferDecoder:
    found = find_buffer(name)
    if found is None:
        raise LookupError(f"no buffer decoder {name}")
    return found


def _struct_decoder(layout: Struct) -> BufferDecoder:
    def decode(data: bytes, arch: Arch) -> Node:
        record = layout.decode(data)
        return record if record.fields else data

    return decode


def _array_decoder(layout: Struct) -> BufferDecoder:
    def decode(data: bytes, arch: Arch) -> Node:
        size = layout.size
        return [layout.decode(data[at : at + size]) for at in range(0, len(data) - size + 1, size)]

    return decode


def _numbers(code: str, hexadecimal: bool = False) -> BufferDecoder:
    size = struct.calcsize(code)

    def decode(data: bytes, arch: Arch) -> Node:
        values = struct.unpack_from(f"<{len(data) // size}{code}", data)
        return [Hex(value) for value in values] if hexadecimal else list(values)

    return decode


def _one_number(code: str, hexadecimal: bool = False) -> BufferDecoder:
    size = struct.calcsize(code)

    def decode(data: bytes, arch: Arch) -> Node:
        if len(data) < size:
            return data
        (value,) = struct.unpack_from("<" + code, data)
        return [Hex(value) if hexadecimal else value]

    return decode


def _raw(data: bytes, arch: Arch) -> Node:
    return data


def _c_string(data: bytes, arch: Arch) -> Node:
    return data.partition(b"\0")[0]


def _signal_set(data: bytes, arch: Arch) -> Node:
    bits = int.from_bytes(data[:8], "little")
    names = [signal_name(number) for number in range(1, 65) if bits >> (number - 1) & 1]
    if len(names) <= 32:
        return Shown(f"[{' '.join(_short(name) for name in names)}]", [Symbol(name) for name in names])
    others = [signal_name(number) for number in range(1, 65) if not bits >> (number - 1) & 1]
    return Shown(f"~[{' '.join(_short(name) for name in others)}]", [Symbol(name) for name in names])


def _short(signal: str) -> str:
    return signal.removeprefix("SIG")


def _bit_numbers(data: bytes) -> list[int]:
    bits = int.from_bytes(data, "little")
    numbers = []
    while bits:
        lowest = bits & -bits
        numbers.append(lowest.bit_length() - 1)
        bits ^= lowest
    return numbers


def _descriptor_set(data: bytes, arch: Arch) -> Node:
    numbers = _bit_numbers(data)
    return Shown(f"[{' '.join(map(str, numbers))}]", list(numbers))


def _cpu_set(data: bytes, arch: Arch) -> Node:
    return list(_bit_numbers(data))


def _times(data: bytes, arch: Arch) -> Node:
    timespec = _find_field("timespec")
    times: list[Node] = []
    for at in range(0, len(data) - 15, 16):
        nanoseconds = int.from_bytes(data[at + 8 : at + 16], "little", signed=True)
        special = {_UTIME_NOW: "UTIME_NOW", _UTIME_OMIT: "UTIME_OMIT"}.get(nanoseconds)
        times.append(Symbol(special) if special else timespec(data[at : at + 16], arch))
    return times


def _wait_status(data: bytes, arch: Arch) -> Node:
    if len(data) < 4:
        return data
    status = int.from_bytes(data[:4], "little")
    signo = status & _SIGNAL_BITS
    if status == _CONTINUED:
        return Shown("[{WIFCONTINUED(s)}]", Record({"continued": 1}))
    if signo == _STOPPED:
        stop = signal_name(status >> 8 & 0xFF)
        return Shown(f"[{{WIFSTOPPED(s) && WSTOPSIG(s) == {stop}}}]", Record({"stopped": Symbol(stop)}))
    if signo:
        core = " && WCOREDUMP(s)" if status & _CORE_BIT else ""
        fields: dict[str, Node] = {"signaled": Symbol(signal_name(signo)), "core": status >> 7 & 1}
        return Shown(f"[{{WIFSIGNALED(s) && WTERMSIG(s) == {signal_name(signo)}{core}}}]", Record(fields))
    code = status >> 8 & 0xFF
    return Shown(f"[{{WIFEXITED(s) && WEXITSTATUS(s) == {code}}}]", Record({"exited": code}))


def _signal_info(data: bytes, arch: Arch) -> Node:
    if len(data) < 12:
        return data
    signo, number, code = struct.unpack_from("<iii", data)
    head = find_scalar("signal", 32)
    codes = find_names(
        "cld_code" if signo == 17 and code > 0 else "segv_code" if signo == 11 and code > 0 else "si_code"
    )
    name = codes.name_of(code) if codes else None
    fields: dict[str, Node] = {
        "si_signo": head(signo & 0xFFFFFFFF) if head else signo,
        "si_code": Symbol(name) if name else code,
    }
    if number:
        fields["si_errno"] = number
    if len(data) >= 32:
        if signo in (4, 5, 7, 8, 11) and code > 0:
            fields["si_addr"] = Hex(int.from_bytes(data[16:24], "little"))
        else:
            fields["si_pid"], fields["si_uid"] = struct.unpack_from("<iI", data, 16)
            if signo == 17:
                status = signed(int.from_bytes(data[24:28], "little"), 32)
                fields["si_status"] = status if code == 1 else Symbol(signal_name(status))
            elif code == -1:
                fields["si_value"] = Hex(int.from_bytes(data[24:32], "little"))
    return Record(fields)


def _directory_entries(name_offset: int, type_first: bool) -> BufferDecoder:
    def decode(data: bytes, arch: Arch) -> Node:
        types = find_names("dirent_type")
        entries: list[Node] = []
        at = 0
        while at + name_offset < len(data):
            inode, offset, length = struct.unpack_from("<QqH", data, at)
            if length <= name_offset or at + length > len(data):
                break
            kind = data[at + 18] if type_first else data[at + length - 1]
            type_name = types.name_of(kind) if types else None
            name = data[at + name_offset : at + length - (not type_first)].partition(b"\0")[0]
            entries.append(
                Record(
                    {
                        "d_ino": inode,
                        "d_off": offset,
                        "d_type": Symbol(type_name) if type_name else kind,
                        "d_name": name,
                    }
                )
            )
            at += length
        return Shown(f"/* {len(entries)} {'entry' if len(entries) == 1 else 'entries'} */", entries)

    return decode


def _file_handle(data: bytes, arch: Arch) -> Node:
    if len(data) < 8:
        return data
    size, kind = struct.unpack_from("<Ii", data)
    return Record(
        {"handle_bytes": size, "handle_type": Hex(kind & 0xFFFFFFFF), "f_handle": data[8 : 8 + size]}
    )


def _message(data: bytes, arch: Arch) -> Node:
    if len(data) < 8:
        return data
    return Record({"mtype": int.from_bytes(data[:8], "little", signed=True), "mtext": data[8:]})


def _socket_address(data: bytes, arch: Arch) -> Node:
    if len(data) < 2:
        return data
    family = int.from_bytes(data[:2], "little")
    names = find_names("socket_family")
    name = names.name_of(family) if names else None
    fields: dict[str, Node] = {"sa_family": Symbol(name) if name else family}
    decode = _FAMILIES.get(name or "")
    if decode is None or not decode(data, fields):
        fields["sa_data"] = data[2:]
    return Record(fields)


def _network_port(data: bytes) -> Node:
    port = int.from_bytes(data, "big")
    return Shown(f"htons({port})", port)


def _inet_address(data: bytes, fields: dict[str, Node]) -> bool:
    if len(data) < 8:
        return False
    text = ".".join(map(str, data[4:8]))
    fields["sin_port"] = _network_port(data[2:4])
    fields["sin_addr"] = Shown(f'inet_addr("{text}")', Symbol(text))
    return True


def _inet6_address(data: bytes, fields: dict[str, Node]) -> bool:
    if len(data) < 24:
        return False
    from socket import AF_INET6, inet_ntop  # takes long to import, and few programs have IPv6 addresses

    text = inet_ntop(AF_INET6, data[8:24])
    fields["sin6_port"] = _network_port(data[2:4])
    fields["sin6_flowinfo"] = Hex(int.from_bytes(data[4:8], "big"))
    fields["sin6_addr"] = Shown(f'inet_pton(AF_INET6, "{text}")', Symbol(text))
    if len(data) >= 28:
        fields["sin6_scope_id"] = int.from_bytes(data[24:28], "little")
    return True


def _unix_address(data: bytes, fields: dict[str, Node]) -> bool:
    path = data[2:]
    if path[:1] == b"\0":
        fields["sun_path"] = Shown("@" + quote(path[1:]), b"@" + path[1:])
    elif path:
        fields["sun_path"] = path.partition(b"\0")[0]
    return True


def _netlink_address(data: bytes, fields: dict[str, Node]) -> bool:
    if len(data) < 12:
        return False
    fields["nl_pid"] = int.from_bytes(data[4:8], "little")
    fields["nl_groups"] = Hex(int.from_bytes(data[8:12], "little"))
    return True


_FAMILIES = {
    "AF_INET": _inet_address,
    "AF_INET6": _inet6_address,
    "AF_UNIX": _unix_address,
    "AF_NETLINK": _netlink_address,
}

_ARRAYS = {
    "pollfds": "pollfd",
    "epoll_events": "epoll_event",
    "timevals": "timeval",
    "sembufs": "sembuf",
    "cap_data": "cap_datum",
}

_SPECIAL: dict[str, BufferDecoder] = {
    "hexdump": _raw,
    "c_string": _c_string,
    "i32_box": _one_number("i"),
    "u32_box": _one_number("I"),
    "u32_hex_box": _one_number("I", hexadecimal=True),
    "i64_box": _one_number("q"),
    "u64_box": _one_number("Q"),
    "fd_pair": _numbers("i"),
    "i32_array": _numbers("i"),
    "u32_array": _numbers("I"),
    "u64_array": _numbers("Q"),
    "u64_pair": _numbers("Q"),
    "sigset": _signal_set,
    "fd_set": _descriptor_set,
    "cpu_set": _cpu_set,
    "utimens": _times,
    "wait_status": _wait_status,
    "siginfo": _signal_info,
    "dirents": _directory_entries(19, type_first=True),
    "dirents32": _directory_entries(18, type_first=False),
    "file_handle": _file_handle,
    "msgbuf": _message,
    "sockaddr": _socket_address,
}
