"""What the sockets of a confined session may do, decided by the arguments that its calls are made with.

Every call is judged by the very copy of its arguments that the kernel then gets, so nothing can be changed between.
Refused calls fail with EACCES. The log has a line for each target of each call, once: of what is refused here, and of
what the kernel has refused to the session.

Not trusted: the stub host, and what a server's method makes of a call.
Thread rules: the session's main thread, which makes no other call between the judgement and the call itself.
"""

import errno
import os
import socket
from collections.abc import Sequence

from ptserver.confinement.net_rules import NetRule, Purpose, allows, decode_address
from ptserver.confinement.options import Confinement
from ptserver.sessions.log import Log
from ptserver.shadow.execute import execute
from stepping.syscalls import SYSCALLS, ArgKind, Syscall
from stepping.syscalls.socket_messages import split

#: The calls that must be judged.
GATED = frozenset({"socket", "connect", "bind", "listen", "sendto", "sendmsg", "sendmmsg"})

_DENIALS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_MAX_NOTED = 1000
_TYPE_MASK = 0xF  # the rest of socket(2)'s type are flags
#: IPPROTO_IP (the default), TCP, UDP, UDPLITE, MPTCP.
_PROTOCOLS = frozenset({0, 6, 17, 136, 262})
_TYPES = frozenset({socket.SOCK_STREAM, socket.SOCK_DGRAM})
_NETLINK_ROUTE = 0
_ADDRESS_BYTES = 128


class Gate:
    """Judges calls by *confinement*; log: hears of what is refused."""

    def __init__(self, confinement: Confinement, log: Log) -> None:
        self._connect = confinement.connect
        self._bind = confinement.bind
        self._log = log
        self._noted: set[tuple[str, str]] = set()

    def judge(self, name: str, args: Sequence[int], ins: dict[int, bytes]) -> int:
        """Return 0 if the call may be made, else the errno that it fails with."""
        match name:
            case "socket":
                return self._judge_socket(*(arg & 0xFFFFFFFF for arg in args[:3]))
            case "connect":
                return self._judge(self._connect, _address(ins.get(1), args[2]), "connect")
            case "bind":
                return self._judge(self._bind, _address(ins.get(1), args[2]), "bind")
            case "sendto":
                return self._judge(self._connect, _address(ins.get(4), args[5]), "send")
            case "sendmsg" | "sendmmsg":
                return self._judge_messages(ins.get(1))
            case "listen":
                return self._judge_listen(args[0])
            case _:
                return 0

    def _judge(self, rules: Sequence[NetRule] | None, address: bytes | None, purpose: Purpose) -> int:
        if rules is None or address is None or allows(rules, address, purpose):
            return 0
        target = decode_address(address)
        return self._refuse(purpose, target.text if target else "nothing")

    def _judge_messages(self, run: bytes | None) -> int:
        if self._connect is None or run is None:
            return 0
        try:
            messages = split(run)
        except ValueError:
            return errno.EINVAL
        failures = (self._judge(self._connect, message.name, "send") for message in messages if message.name)
        return next((failure for failure in failures if failure), 0)

    def _judge_socket(self, family: int, kind: int, protocol: int) -> int:
        """Only sockets whose addresses are judged, and one kind that tells which addresses this machine has."""
        if family == socket.AF_UNIX or (self._connect is None and self._bind is None):
            return 0
        if family in (socket.AF_INET, socket.AF_INET6):
            if kind & _TYPE_MASK in _TYPES and protocol in _PROTOCOLS:
                return 0
        elif family == socket.AF_NETLINK and protocol == _NETLINK_ROUTE:
            return 0
        return self._refuse("socket", f"family {family}, type {kind & _TYPE_MASK}, protocol {protocol}")

    def _judge_listen(self, fd: int) -> int:
        """To listen at a socket that is not bound is to bind it to any port of every address."""
        if self._bind is None:
            return 0
        room = _ADDRESS_BYTES.to_bytes(4, "little")
        _, failure, outs = execute(
            SYSCALLS["getsockname"], (fd, 1, 1, 0, 0, 0), {2: room}, {1: _ADDRESS_BYTES, 2: 4}
        )
        if failure:
            return failure
        target = decode_address(outs.get(1, b""))
        if target is None or target.address is None or target.port:
            return 0
        return self._judge(self._bind, outs[1], "bind")

    def heard(self, row: Syscall, ins: dict[int, bytes], failure: int) -> None:
        """Note a call that the kernel has refused, if *failure* says that it has.

        Of calls without a path only EROFS does: EPERM and EACCES have other meanings there (epoll_ctl on a file).
        """
        if failure in _DENIALS:
            paths = [ins[i] for i, arg in enumerate(row.args) if arg.kind is ArgKind.PATH and i in ins]
            if not paths and failure != errno.EROFS:
                return
            target = " and ".join(path.decode("utf-8", "backslashreplace") for path in paths)
            self._note(row.name, target, failure, os.strerror(failure))

    def _refuse(self, name: str, target: str) -> int:
        self._note(name, target, errno.EACCES, "no rule allows it")
        return errno.EACCES

    def _note(self, name: str, target: str, failure: int, why: str) -> None:
        if (name, target) not in self._noted and len(self._noted) < _MAX_NOTED:
            self._noted.add((name, target))
            what = f"{name} {target}" if target else name
            self._log(
                f"refused {what}: {why}",
                refused=name,
                target=target,
                errno=errno.errorcode[failure],
            )


def _address(data: bytes | None, size: int) -> bytes | None:
    """Return as much of an address as the call says that it has."""
    return None if data is None else data[: size & 0xFFFFFFFF]
