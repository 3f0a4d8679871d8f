"""Makes a socket of the program local when the address that it is to reach, or to be bound to, says so: by its port,
or, of a Unix socket, by its path, which is a file like any other.

Until then it is the server's, and what the program does to it is noted: its options, whether it blocks, and the epoll
sets that it is in. The server's socket stays as the placeholder of its number.

Sockets of other families stay the server's, and so do Unix sockets with abstract names.
"""

import contextlib
import errno
import os
import socket
import struct

from ptserver.confinement.net_rules import decode_address
from ptserver.rules.rules import Rules
from ptserver.rules.table import LocalTable, TrackedSocket

_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})
_FAMILY = struct.Struct("=H")
_MAX_PATH_BYTES = 107
_TYPE_MASK = 0xF
_F_SETFL = 4
_MAX_OPTIONS = 64


def note_socket(table: LocalTable, number: int, family: int, kind: int, protocol: int) -> None:
    """Note a socket that the server has made."""
    is_plain = kind & _TYPE_MASK in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    if family == socket.AF_UNIX or (family in _INTERNET and is_plain):
        table.sockets[number] = TrackedSocket(family, kind, protocol)


def note_change(table: LocalTable, name: str, args: tuple[int, ...], ins: dict[int, bytes]) -> None:
    """Note what `setsockopt` or `fcntl` does to a socket that may become local."""
    tracked = table.sockets.get(args[0] & 0xFFFFFFFF)
    if tracked is None:
        return
    if name == "setsockopt" and 3 in ins and len(tracked.options) < _MAX_OPTIONS:
        tracked.options.append((args[1] & 0xFFFFFFFF, args[2] & 0xFFFFFFFF, ins[3]))
    elif name == "fcntl" and args[1] & 0xFFFFFFFF == _F_SETFL:
        tracked.nonblocking = bool(args[2] & os.O_NONBLOCK)


def unix_path(address: bytes) -> str | None:
    """Return the path that a socket address names, None if it names none."""
    target = decode_address(address)
    if target is None or not target.path or address[_FAMILY.size :].startswith(b"\0"):
        return None
    return target.path


def unix_address(path: str) -> bytes | None:
    """Return the address of a Unix socket at *path*, None if that is too long."""
    name = path.encode("utf-8", "surrogateescape")
    return _FAMILY.pack(socket.AF_UNIX) + name + b"\0" if len(name) <= _MAX_PATH_BYTES else None


def becomes_local(rules: Rules, name: str, address: bytes) -> bool:
    """Whether a socket becomes local by call *name* (connect, bind or a sending one) with that *address*.

    A path in it must be absolute.
    """
    path = unix_path(address)
    if path is not None:
        return rules.path(path).side == "local"
    target = decode_address(address)
    if target is None or target.address is None or not target.port:
        return False
    kind = "listen" if name == "bind" else "connect"
    return rules.port(kind, target.port).side == "local"  # type: ignore[arg-type]


def make_local(tracked: TrackedSocket) -> int:
    """Return a descriptor of this process for a socket as *tracked* is.

    Options that this machine does not take are left out.
    Raises: OSError.
    """
    with socket.socket(tracked.family, tracked.kind & _TYPE_MASK, tracked.protocol) as sock:
        for level, option, value in tracked.options:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, value)
        nonblocking = tracked.nonblocking
        if nonblocking is None:
            nonblocking = bool(tracked.kind & socket.SOCK_NONBLOCK)
        os.set_blocking(sock.fileno(), not nonblocking)
        os.set_inheritable(sock.fileno(), not tracked.kind & socket.SOCK_CLOEXEC)
        return sock.detach()


#: Calls that programs try, and do without where file systems or descriptors do not go together.
COPYING = frozenset("rename renameat renameat2 link linkat copy_file_range sendfile splice tee".split())


def refusal_of_mixture(name: str) -> int:
    """Return the errno of a call whose arguments belong to both machines.

    It is one that programs know: of two file systems, or of descriptors that do not go together, after which they
    copy by reading and writing.
    """
    crosses = name.startswith(("rename", "link")) or name == "copy_file_range"
    return errno.EXDEV if crosses else errno.EINVAL
