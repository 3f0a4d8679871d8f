"""Calls on connected sockets that a session makes for a program in other words than the program's.

Thread rules: as `ptserver.shadow.execute`.
"""

import ctypes
import socket

from ptserver.shadow.execute import ARCH, Executed
from ptserver.shadow.raw_calls import CALLS
from stepping.syscalls import SYSCALLS

_RECVFROM = SYSCALLS["recvfrom"].numbers.get(ARCH, -1)
_SENDTO = SYSCALLS["sendto"].numbers.get(ARCH, -1)


def peek(fd: int, size: int) -> bytes:
    """Return what a read of *size* bytes from the stream socket *fd* would bring at once; nothing is taken.

    b"" if nothing is there, or the socket is at its end or has failed.
    """
    buffer = bytearray(size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    count = CALLS[6](_RECVFROM, fd, address, size, socket.MSG_PEEK | socket.MSG_DONTWAIT, 0, 0)
    return bytes(buffer[:count]) if count > 0 else b""


def take(fd: int, size: int) -> None:
    """Take *size* bytes that are there out of the queue of the TCP socket *fd*. Source: tcp(7), MSG_TRUNC."""
    CALLS[6](_RECVFROM, fd, 0, size, socket.MSG_TRUNC | socket.MSG_DONTWAIT, 0, 0)


def send(fd: int, data: bytes, flags: int) -> Executed:
    """Write *data* to a connected socket, with flags of sendto(2)."""
    value = CALLS[6](_SENDTO, fd, data, len(data), flags, 0, 0)
    return (value, 0, {}) if value != -1 else (0, ctypes.get_errno(), {})
