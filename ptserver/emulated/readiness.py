"""When a call that may sleep would not: what of its descriptors tells so, and for how long it waits at most.

Source: signal(7), socket(7), pipe(7), recvmmsg(2).
"""

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Mapping

from ptserver.shadow.execute import execute
from stepping.syscalls import SYSCALLS, Syscall
from stepping.syscalls.marshal import Args, Gathered

READERS = frozenset("read pread64 readv preadv preadv2 recvfrom recvmsg recvmmsg accept accept4".split())
_WRITERS = frozenset("write pwrite64 writev pwritev pwritev2 sendto sendmsg sendmmsg".split())
EPOLLS = frozenset("epoll_wait epoll_pwait epoll_pwait2".split())
POLLS = frozenset("poll ppoll".split())
SELECTS = frozenset("select pselect6".split())
#: What fails when a signal comes, whatever its handler's flags. Source: signal(7).
NEVER_REPEATED = (
    EPOLLS | POLLS | SELECTS | frozenset("semop semtimedop msgrcv msgsnd io_getevents io_pgetevents".split())
)
_FLAGS_OF_RECEIVING = {"recvmmsg": 3, "recvfrom": 3, "recvmsg": 2}
_MSG_WAITFORONE = 0x10000
_TIMEVAL = struct.Struct("<qq")
_SOME_ADDRESS = 8  # where the executor puts its own

#: fcntl's commands that wait for a lock, and those that do not.
_LOCKS_AT_ONCE = {fcntl.F_SETLKW: fcntl.F_SETLK, 38: 37}  # F_OFD_SETLKW, F_OFD_SETLK
_PIPE_BUF = 4096
_INFO, _SIGNAL_BYTES = 2, 4  # which argument of waitid(2) that is, and its beginning: 0 if there was nothing
_SECOND = 1_000_000_000
#: Which arguments of `SELECTS` are sets of descriptors, and what is waited for of those.
_SETS = {1: select.POLLIN, 2: select.POLLOUT, 3: select.POLLPRI}
#: Whose time limit is two words, and how many nanoseconds the second counts.
_LIMITS_OF_TWO_WORDS = {"ppoll": 1, "epoll_pwait2": 1, "pselect6": 1, "select": 1000}


def watched_by(name: str, call: Gathered) -> tuple[tuple[int, int], int] | None:
    """Return what poll(2) is to watch for a call that transfers: (descriptor, events), and a socket's option.

    The option (SO_RCVTIMEO, SO_SNDTIMEO) says how long it waits. None: poll cannot tell when it would not sleep.
    """
    fd = call.args[0] & 0x7FFFFFFF
    if name in READERS and not _wants_all(name, call.args):
        return (fd, select.POLLIN), socket.SO_RCVTIMEO
    if name in _WRITERS and sum(map(len, call.ins.values())) <= _PIPE_BUF:
        return (fd, select.POLLOUT), socket.SO_SNDTIMEO
    return None


def watched_by_poll(name: str, call: Gathered) -> list[tuple[int, int]]:
    """Return what poll(2) is to watch for a call that itself waits for events, of `EPOLLS`, `POLLS` or `SELECTS`."""
    if name in EPOLLS:
        return [(call.args[0] & 0x7FFFFFFF, select.POLLIN)]
    events: dict[int, int] = {}
    if name in SELECTS:
        for index, wanted in _SETS.items():
            members = int.from_bytes(call.ins.get(index, b""), "little")
            for fd in range(call.args[0] & 0x7FFFFFFF):
                if members >> fd & 1:
                    events[fd] = events.get(fd, 0) | wanted
        return list(events.items())
    for fd, wanted, _ in struct.iter_unpack("<ihh", call.ins.get(0, b"")):
        if fd >= 0:
            events[fd] = events.get(fd, 0) | wanted & 0xFFFF
    return list(events.items())


def without_waiting(name: str, call: Gathered) -> Gathered | None:
    """Return a call that does the same if it can be done at once (see `has_waited`); None if none does."""
    a0, a1, a2, a3, a4, a5 = call.args
    if name == "flock":
        return call._replace(args=(a0, a1 | fcntl.LOCK_NB, a2, a3, a4, a5))
    if name == "wait4":
        return call._replace(args=(a0, a1, a2 | os.WNOHANG, a3, a4, a5))
    if name == "waitid" and call.outs.get(_INFO):
        return call._replace(args=(a0, a1, a2, a3 | os.WNOHANG, a4, a5))
    if name == "pselect6":
        return call._replace(args=(a0, a1, a2, a3, _SOME_ADDRESS, a5), ins={**call.ins, 4: bytes(16)})
    command = _LOCKS_AT_ONCE.get(a1 & 0xFFFFFFFF) if name == "fcntl" else None
    return call._replace(args=(a0, command, a2, a3, a4, a5)) if command is not None else None


def has_waited(name: str, call: Gathered, value: int, error: int, outs: Mapping[int, bytes]) -> bool:
    """Whether the *call* itself would have waited where that of `without_waiting` came to this."""
    if name == "waitid":
        return not error and not call.args[3] & os.WNOHANG and not any(outs[_INFO][:_SIGNAL_BYTES])
    if name == "wait4":
        return not value and not error and not call.args[2] & os.WNOHANG
    if name == "pselect6":
        return not value and not error and any(call.ins.get(4, b"\1"))
    return error in (errno.EAGAIN, errno.EACCES)


def mask_while_waiting(row: Syscall, call: Gathered) -> int | None:
    """Return the signals that are blocked while the call waits, signal n as bit n - 1; None: as before."""
    index = next((index for index, arg in enumerate(row.args) if arg.decoder == "sigset"), None)
    data = call.ins.get(index, b"") if index is not None else b""
    return int.from_bytes(data[:8], "little") if len(data) >= 8 else None


def is_ready(watched: tuple[int, int]) -> bool:
    """Whether one of the events has come to the descriptor."""
    poll = select.poll()
    poll.register(*watched)
    return bool(poll.poll(0))


def patience_ns(fd: int, option: int) -> int | None:
    """Return how long a socket lets calls wait by its *option* SO_RCVTIMEO or SO_SNDTIMEO; None: for ever."""
    args = (fd, socket.SOL_SOCKET, option, _SOME_ADDRESS, _SOME_ADDRESS, 0)
    size = struct.pack("<I", _TIMEVAL.size)
    _, error, outs = execute(
        SYSCALLS["getsockopt"], args, {3: bytes(_TIMEVAL.size), 4: size}, {3: _TIMEVAL.size, 4: 4}
    )
    if error:
        return None  # it is no socket
    seconds, microseconds = _TIMEVAL.unpack(outs[3])
    return (seconds * _SECOND + microseconds * 1000) or None


def at_once(name: str, call: Gathered, index: int) -> Gathered:
    """Return a *call* that waits for events without the wait: with a time limit, its argument *index*, of zero."""
    if name in _LIMITS_OF_TWO_WORDS:
        return _with(call._replace(ins={**call.ins, index: bytes(16)}), index, _SOME_ADDRESS)
    return _with(call, index, 0)


def _with(call: Gathered, index: int, value: int) -> Gathered:
    a0, a1, a2, a3, a4, a5 = (value if i == index else arg for i, arg in enumerate(call.args))
    return call._replace(args=(a0, a1, a2, a3, a4, a5))


def timeout_ns(call: Gathered, index: int, name: str) -> int | None:
    """Return how long a call waits at most; None: for ever."""
    if name in _LIMITS_OF_TWO_WORDS:
        data = call.ins.get(index)
        if data is None:
            return None
        seconds, rest = struct.unpack("<qq", data)
        return int(seconds * _SECOND + rest * _LIMITS_OF_TWO_WORDS[name])
    milliseconds = call.args[index] & 0xFFFFFFFF
    return None if milliseconds >> 31 else milliseconds * 1_000_000


def _wants_all(name: str, args: Args) -> bool:
    """Whether a call that receives waits until there is as much as it has room for."""
    flags = _FLAGS_OF_RECEIVING.get(name)
    if flags is None:
        return False
    if name == "recvmmsg":
        return args[2] & 0xFFFFFFFF > 1 and not args[flags] & _MSG_WAITFORONE
    return bool(args[flags] & socket.MSG_WAITALL)
