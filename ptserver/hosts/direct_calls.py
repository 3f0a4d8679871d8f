"""What a call means for direct sockets and for the epoll instances that watch them. Pure.

SHARES    it may share descriptors with others, or put others in their place
names     the descriptors that it is about, wherever it names them
passive   it is about a socket, but neither about its bytes nor about when they are ready
"""

import os
import socket
import struct
from collections.abc import Container, Iterator

from ptserver.hosts.pending_call import PendingCall
from ptserver.hosts.policy import EXECS, FORKS
from stepping.syscalls import ArgKind
from stepping.syscalls.socket_messages import passed_descriptors

_DUPLICATES = frozenset("dup dup2 dup3 close_range".split())
#: Calls after which others have descriptors of this process, or it has theirs.
_SHARES = FORKS | EXECS | frozenset("pidfd_getfd unshare".split())
_MESSAGES = frozenset({"sendmsg", "sendmmsg"})
_POLLS, _SELECTS = frozenset({"poll", "ppoll"}), frozenset({"select", "pselect6"})
_PASSIVE = frozenset({"getsockname", "getpeername", "fstat"})
_POLLFD = struct.Struct("=ihh")
_SOL_SOCKET = 1
_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})
_TYPE_MASK = 0xF
_TCP = frozenset({0, socket.IPPROTO_TCP, 262})  # and IPPROTO_MPTCP
_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 1030
_QUIET_CONTROLS = frozenset({_F_GETFD, _F_SETFD, _F_GETFL})
_INT = 0xFFFFFFFF


def shares_all(call: PendingCall) -> bool:
    """Whether others may have any of the process's descriptors after *call*."""
    assert call.row is not None
    return call.row.name in _SHARES


def names(call: PendingCall) -> Iterator[int]:
    """Yield the descriptors that *call* is about: in registers, messages, and what is polled."""
    row = call.row
    assert row is not None
    args = call.args
    for index, arg in enumerate(row.args):
        if arg.kind is ArgKind.FD:
            yield args[index] & _INT
    name = row.name
    if name in _DUPLICATES:
        if name == "close_range":
            yield from range(args[0] & _INT, min(args[1] & _INT, 1 << 16) + 1)
        elif name != "dup":
            yield args[1] & _INT
    elif name in _MESSAGES:
        try:
            yield from passed_descriptors(call.gathered.ins.get(1, b""))
        except ValueError:
            pass  # the session refuses it, too
    elif name in _POLLS:
        array = call.gathered.ins.get(0, b"")
        for fd, _, _ in _POLLFD.iter_unpack(array[: len(array) // _POLLFD.size * _POLLFD.size]):
            yield fd & _INT
    elif name in _SELECTS:
        for index in (1, 2, 3):
            bits = int.from_bytes(call.gathered.ins.get(index, b""), "little")
            yield from (fd for fd in range(bits.bit_length()) if bits >> fd & 1)


def is_passive(call: PendingCall) -> bool:
    """Whether *call*, which is about a socket, leaves its bytes and its state alone."""
    assert call.row is not None
    name = call.row.name
    if name in ("setsockopt", "getsockopt"):  # those of TCP and IP are about neither
        return call.args[1] & _INT != _SOL_SOCKET
    return name in _PASSIVE or (name == "fcntl" and call.args[1] & _INT in _QUIET_CONTROLS)


def is_duplicate(call: PendingCall) -> bool:
    """Whether what *call* is about may have another descriptor after it."""
    assert call.row is not None
    name = call.row.name
    if name == "fcntl":
        return call.args[1] & _INT in (_F_DUPFD, _F_DUPFD_CLOEXEC)
    return name in _DUPLICATES or name in _MESSAGES


def makes_tcp(call: PendingCall, tcp: Container[int]) -> bool:
    """Whether *call* makes a socket of TCP, or MPTCP; *tcp*: those that are."""
    assert call.row is not None
    family, kind, protocol = (arg & _INT for arg in call.args[:3])
    if call.row.name == "socket":
        return family in _INTERNET and kind & _TYPE_MASK == socket.SOCK_STREAM and protocol in _TCP
    return call.row.name in ("accept", "accept4") and family in tcp


def makes_nonblocking(call: PendingCall) -> bool:
    """Whether the socket that *call* makes does not block."""
    assert call.row is not None
    flags = {"accept4": call.args[3], "socket": call.args[1]}.get(call.row.name, 0)
    return bool(flags & os.O_NONBLOCK)


def makes_blocking(call: PendingCall) -> bool:
    """Whether a descriptor blocks after *call*."""
    assert call.row is not None
    if call.row.name == "fcntl":
        return call.args[1] & _INT == _F_SETFL and not call.args[2] & os.O_NONBLOCK
    return call.row.name == "ioctl"
