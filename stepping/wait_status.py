"""What a wait for a tracee reports, decoded once into a value.

The raw number is waitpid's: for a stop, the low byte is 0x7F, the next one the signal and the third a ptrace
event. The names of the stops are those of ptrace(2):

    signal-delivery  a signal is about to be delivered; resume with it, with another one, or without
    group            all of the process was stopped by a stopping signal; answer with `listen`
    event            a thread was created, is exiting, has exec'd, or was interrupted (`Event`)
    syscall          a syscall is entered or left

Source: ptrace(2), waitpid(2); kernel/ptrace.c, kernel/signal.c.
"""

import signal
from enum import Enum, IntEnum
from functools import lru_cache
from typing import NamedTuple

#: An option of waitpid(2), __WALL: for seized threads as well as for processes.
WAIT_ALL = 0x40000000


class WaitKind(Enum):
    """What happened."""

    SIGNAL_DELIVERY = "signal-delivery-stop"
    GROUP = "group-stop"
    EVENT = "event-stop"
    SYSCALL = "syscall-stop"
    EXITED = "exited"
    KILLED = "killed"


class Event(IntEnum):
    """PTRACE_EVENT_*. STOP: after `interrupt`, a new thread's first stop, or the end of a group-stop."""

    FORK = 1
    VFORK = 2
    CLONE = 3
    EXEC = 4
    VFORK_DONE = 5
    EXIT = 6
    SECCOMP = 7
    STOP = 128


class WaitStatus(NamedTuple):
    """One report of a wait.

    signo: the signal (delivered, stopping or killing), else 0; event: for event stops; exit_status: 0 to 255,
    for EXITED; core_dumped: for KILLED.
    """

    kind: WaitKind
    signo: int = 0
    event: Event | None = None
    exit_status: int = 0
    core_dumped: bool = False

    @property
    def is_stop(self) -> bool:
        """Whether the tracee is stopped and answers ptrace requests; otherwise it is gone."""
        return self.kind not in (WaitKind.EXITED, WaitKind.KILLED)

    @property
    def raw_end(self) -> int:
        """What waitpid(2) gives for this end of a process."""
        if self.kind is WaitKind.EXITED:
            return self.exit_status << 8
        return self.signo | (0x80 if self.core_dumped else 0)

    def __str__(self) -> str:
        match self.kind:
            case WaitKind.EXITED:
                return f"exited with {self.exit_status}"
            case WaitKind.KILLED:
                return f"killed by {signal_name(self.signo)}" + (" (core dumped)" if self.core_dumped else "")
            case WaitKind.EVENT if self.event is not None:
                return f"event-stop {self.event.name}"
            case WaitKind.SYSCALL:
                return "syscall-stop"
        return f"{self.kind.value} {signal_name(self.signo)}"


_STOPPING = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_SYSCALL_SIGNAL = signal.SIGTRAP | 0x80  # PTRACE_O_TRACESYSGOOD


@lru_cache(maxsize=512)
def decode_wait_status(raw: int) -> WaitStatus:
    """Return what the raw status of a seized tracee means (one traced with SYSGOOD).

    Raises:
        ValueError: no kernel reports this.
    """
    low, middle, event = raw & 0xFF, raw >> 8 & 0xFF, raw >> 16
    if low == 0x7F:
        return _decode_stop(middle, event, raw)
    if low & 0x7F == 0:
        return WaitStatus(WaitKind.EXITED, exit_status=middle)
    if low & 0x7F == 0x7F:
        raise ValueError(f"unknown wait status {raw:#x}")
    return WaitStatus(WaitKind.KILLED, signo=low & 0x7F, core_dumped=bool(low & 0x80))


def signal_name(signo: int) -> str:
    """Return a signal's name, such as SIGURG, SIGRTMIN+3, or its number if it has none."""
    try:
        return signal.Signals(signo).name
    except ValueError:
        first = 32  # the kernel's SIGRTMIN; 32 and 33 are the C library's own
        return f"SIGRT_{signo - first}" if first <= signo <= 64 else str(signo)


def _decode_stop(signo: int, event: int, raw: int) -> WaitStatus:
    if event:
        try:
            kind = Event(event)
        except ValueError:
            raise ValueError(f"unknown ptrace event in wait status {raw:#x}") from None
        if kind is Event.STOP and signo in _STOPPING:
            return WaitStatus(WaitKind.GROUP, signo=signo)
        return WaitStatus(WaitKind.EVENT, event=kind)
    if signo == _SYSCALL_SIGNAL:
        return WaitStatus(WaitKind.SYSCALL)
    return WaitStatus(WaitKind.SIGNAL_DELIVERY, signo=signo)
