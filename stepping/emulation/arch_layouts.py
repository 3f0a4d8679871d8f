"""What programs of one architecture and this machine's kernel of another see differently, and its translation.

Linux has given amd64 and arm64 the same syscall arguments but for a few: some flags of open(2) have other numbers,
`struct stat` has another order, `struct epoll_event` is packed on amd64 only, and uname(2) names the machine. The
syscall table's decoder names say where these occur, so the functions here name no syscall but fcntl's two requests
that take and give open's flags.

Everything in between (rows, argument indexes) is as in `stepping.syscalls`.

Source: arch/arm64/include/uapi/asm/fcntl.h, asm-generic/{fcntl,stat}.h, arch/x86/include/uapi/asm/stat.h,
include/uapi/linux/eventpoll.h.
"""

import struct
from collections.abc import Callable

from stepping.syscalls import Arch, Syscall

#: The flags of open(2) that differ: (amd64, arm64).
_OPEN_FLAGS = (
    (0o200000, 0o40000),  # O_DIRECTORY
    (0o400000, 0o100000),  # O_NOFOLLOW
    (0o40000, 0o200000),  # O_DIRECT
    (0o100000, 0o400000),  # O_LARGEFILE
)
_ALL_OPEN_FLAGS = 0o740000
_F_GETFL, _F_SETFL = 3, 4

# dev ino nlink mode uid gid pad rdev size blksize blocks atime mtime ctime (seconds, nanoseconds each)
_STAT_AMD64 = struct.Struct("<QQQIII4xQqqq6q24x")
# dev ino mode nlink uid gid rdev pad size blksize pad blocks atime mtime ctime
_STAT_ARM64 = struct.Struct("<QQIIIIQ8xqi4xq6q8x")
_EVENT_AMD64 = struct.Struct("<IQ")
_EVENT_ARM64 = struct.Struct("<I4xQ")

_MACHINE_OFFSET, _MACHINE_BYTES = 260, 65
_MACHINES: dict[Arch, bytes] = {"amd64": b"x86_64", "arm64": b"aarch64"}

Args = tuple[int, int, int, int, int, int]


class Translation:
    """Between a program for *guest* and a kernel for *host*; for equal ones, nothing is changed."""

    def __init__(self, guest: Arch, host: Arch) -> None:
        self._guest = guest
        self._host = host
        self._needed: dict[str, bool] = {}

    def is_needed(self, row: Syscall) -> bool:
        """Whether anything that the call *row* carries looks different."""
        if self._guest == self._host:
            return False
        needed = self._needed.get(row.name)
        if needed is None:
            needed = row.name == "fcntl" or any(arg.decoder in _DECODERS for arg in row.args)
            self._needed[row.name] = needed
        return needed

    def to_host(
        self, row: Syscall, args: Args, ins: dict[int, bytes], outs: dict[int, int]
    ) -> tuple[Args, dict[int, bytes], dict[int, int]]:
        """Return a call's registers, in-buffers and sizes of out-buffers as this machine's kernel has them."""
        registers, ins, outs = list(args), dict(ins), dict(outs)
        to_amd64 = self._host == "amd64"
        for index, arg in enumerate(row.args):
            if arg.decoder == "open_flags":
                registers[index] = translate_open_flags(registers[index], to_amd64)
            elif arg.decoder == "open_how" and index in ins:
                (flags,) = struct.unpack_from("<Q", ins[index])
                ins[index] = struct.pack("<Q", translate_open_flags(flags, to_amd64)) + ins[index][8:]
            elif arg.decoder == "epoll_event" and index in ins:
                ins[index] = _events(ins[index], self._guest, self._host)
            elif arg.decoder in ("stat", "epoll_events") and index in outs:
                assert arg.length is not None
                count = outs[index] // arg.length.of(1, self._guest)
                outs[index] = count * arg.length.of(1, self._host)
        if row.name == "fcntl" and registers[1] & 0xFFFFFFFF == _F_SETFL:
            registers[2] = translate_open_flags(registers[2], to_amd64)
        a0, a1, a2, a3, a4, a5 = registers
        return (a0, a1, a2, a3, a4, a5), ins, outs

    def to_guest(
        self, row: Syscall, args: Args, value: int, outs: dict[int, bytes]
    ) -> tuple[int, dict[int, bytes]]:
        """Return a successful call's result and what it filled, as the program has them."""
        outs = dict(outs)
        for index, data in outs.items():
            decoder = row.args[index].decoder
            if decoder == "stat":
                outs[index] = _stat(data, self._guest)
            elif decoder == "epoll_events":
                outs[index] = _events(data, self._host, self._guest)
            elif decoder == "utsname":
                name = _MACHINES[self._guest].ljust(_MACHINE_BYTES, b"\0")
                outs[index] = data[:_MACHINE_OFFSET] + name + data[_MACHINE_OFFSET + _MACHINE_BYTES :]
        if row.name == "fcntl" and args[1] & 0xFFFFFFFF == _F_GETFL:
            value = translate_open_flags(value, self._guest == "amd64")
        return value, outs


def translate_open_flags(flags: int, to_amd64: bool) -> int:
    """Return open(2)'s *flags* with the numbers that the other architecture gives them."""
    translated = flags & ~_ALL_OPEN_FLAGS
    for amd64, arm64 in _OPEN_FLAGS:
        before, after = (arm64, amd64) if to_amd64 else (amd64, arm64)
        if flags & before:
            translated |= after
    return translated


def _stat(data: bytes, guest: Arch) -> bytes:
    if guest == "arm64":
        dev, ino, nlink, mode, uid, gid, rdev, size, blksize, blocks, *times = _STAT_AMD64.unpack(data)
        return _STAT_ARM64.pack(dev, ino, mode, nlink, uid, gid, rdev, size, blksize, blocks, *times)
    dev, ino, mode, nlink, uid, gid, rdev, size, blksize, blocks, *times = _STAT_ARM64.unpack(data)
    return _STAT_AMD64.pack(dev, ino, nlink, mode, uid, gid, rdev, size, blksize, blocks, *times)


def _events(data: bytes, source: Arch, target: Arch) -> bytes:
    layouts: dict[Arch, struct.Struct] = {"amd64": _EVENT_AMD64, "arm64": _EVENT_ARM64}
    pack: Callable[..., bytes] = layouts[target].pack
    return b"".join(pack(*event) for event in layouts[source].iter_unpack(data))


_DECODERS = frozenset({"open_flags", "open_how", "stat", "epoll_event", "epoll_events", "utsname"})
