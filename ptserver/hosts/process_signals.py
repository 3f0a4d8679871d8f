"""How the processes of a program treat signals, and how one is given to them. Thread rules: none."""

import ctypes
import errno
import signal
import struct

from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.messages import Signal
from stepping.errors import TraceeGoneError
from stepping.signal_sets import read_signal_sets

#: `si_code` of what sigqueue(3) sends.
SI_QUEUE = -1
#: Which argument is the signal mask that a call has while it waits.
MASK_ARGUMENTS = {"ppoll": 3, "pselect6": 5, "epoll_pwait": 4, "epoll_pwait2": 4}

_NR_PIDFD_SEND_SIGNAL = 424
_QUEUED = struct.Struct("=iii4xIIq")  # si_signo, si_errno, si_code, si_pid, si_uid, si_value
_U64 = struct.Struct("=Q")
_libc = ctypes.CDLL(None, use_errno=True)


def mask_of(call: PendingCall) -> int | None:
    """Return the signal mask that *call* has while it waits, None if it has none."""
    name = call.row.name if call.row is not None else ""
    data = call.gathered.ins.get(MASK_ARGUMENTS.get(name, -1), b"")
    return _U64.unpack(data)[0] if len(data) == _U64.size else None


def has_default_action(process: Process, signo: int) -> bool:
    """Whether the kernel does at once what it does by default, if *process* gets that signal."""
    try:
        sets = read_signal_sets(process.pid, process.pid)
    except TraceeGoneError:
        return False
    return not (sets.ignored | sets.caught | sets.blocked) >> (signo - 1) & 1


def is_caught(process: Process, signo: int) -> bool:
    """Whether *process* has a handler for that signal."""
    try:
        return bool(read_signal_sets(process.pid, process.pid).caught >> (signo - 1) & 1)
    except TraceeGoneError:
        return False


def kill_process(process: Process, signo: int) -> int:
    """Signal *process*; return 0 or the errno."""
    try:
        signal.pidfd_send_signal(process.pidfd, signo)
    except OSError as error:
        return error.errno or errno.ESRCH
    return 0


def queue_signal(process: Process, message: Signal) -> None:
    """Signal *process* with what sigqueue(3) has given along."""
    info = _QUEUED.pack(message.signo, 0, SI_QUEUE, message.sender, message.uid & 0xFFFFFFFF, message.value)
    _libc.syscall(_NR_PIDFD_SEND_SIGNAL, process.pidfd, message.signo, info.ljust(128, b"\0"), 0)
