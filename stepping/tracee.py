"""One thread of the program under trace: its stop, its registers, and how it goes on.

A tracee is either running (`status` is None) or stopped (`status` says why). Requests that need a stop raise
`TraceeGoneError` if the thread died meanwhile, which only SIGKILL or the exit of its process can do.

Signals and group-stops are the program's own: `resume` hands on the signal of a signal-delivery-stop, and
answers a group-stop with `listen`, so that whoever just waits and resumes changes nothing of what the program
and its user see.

All methods are called on the OS thread that seized the tracee.

Source: ptrace(2).
"""

import os
import signal
from enum import Enum

from stepping import ptrace_api
from stepping.errors import SteppingError, TraceeGoneError
from stepping.ptrace_api import Option
from stepping.registers import NATIVE, RegisterLayout, Registers
from stepping.wait_status import WaitKind, WaitStatus, decode_wait_status


class Resume(Enum):
    """Up to where a tracee runs."""

    FREE = "cont"
    SYSCALL = "syscall"
    STEP = "singlestep"
    BLOCK = "singleblock"  # up to the next jump that is taken, or as STEP: as the processor has it


_FAULTS = sum(
    1 << (signo - 1)
    for signo in (signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
)

_REQUESTS = {
    Resume.FREE: ptrace_api.cont,
    Resume.SYSCALL: ptrace_api.syscall,
    Resume.STEP: ptrace_api.singlestep,
    Resume.BLOCK: ptrace_api.singleblock,
}


class Tracee:
    """The thread *tid* of process *pid*, already seized by this OS thread.

    layout: its general registers. status: why it is stopped, or None while it runs.
    """

    __slots__ = ("_dropped", "_held", "layout", "pid", "status", "tid")

    def __init__(self, tid: int, pid: int, layout: RegisterLayout | None = None) -> None:
        self.tid = tid
        self.pid = pid
        self.layout = layout or NATIVE[os.uname().machine]
        self.status: WaitStatus | None = None
        self._held: tuple[int, bytes] | None = None
        self._dropped = False

    def __repr__(self) -> str:
        return f"<Tracee {self.tid} of {self.pid}: {self.status or 'running'}>"

    @classmethod
    def seize(cls, tid: int, pid: int, options: Option) -> "Tracee":
        """Start to trace a running thread.

        Raises:
            PtraceRefusedError: the kernel does not allow it.
            TraceeGoneError: there is no such thread.
        """
        ptrace_api.seize(tid, options)
        return cls(tid, pid)

    @property
    def is_stopped(self) -> bool:
        """Whether it is in a ptrace-stop."""
        return self.status is not None and self.status.is_stop

    @property
    def holds_signal(self) -> bool:
        """Whether a signal is held back whose sender has yet to be restored."""
        return self._held is not None

    def interrupt(self) -> None:
        """Ask it to stop; the stop, or another that came first, is reported by `wait`.

        If another came first, the kernel may have forgotten about this one, so asking again is right.
        """
        ptrace_api.interrupt(self.tid)

    def wait(self, *, block: bool = True) -> WaitStatus | None:
        """Wait for its next report and return it; None if it has none and *block* is false."""
        raw = ptrace_api.wait(self.tid, block=block)
        return None if raw is None else self.note(raw)

    def note(self, raw: int) -> WaitStatus:
        """Take in a report that somebody else waited for."""
        status = decode_wait_status(raw)
        self.status = status
        self._dropped = False
        if self._held is not None and status.kind is WaitKind.SIGNAL_DELIVERY:
            signo, siginfo = self._held
            if signo == status.signo:
                ptrace_api.setsiginfo(self.tid, siginfo)
                self._held = None
        return status

    def resume(self, how: Resume = Resume.FREE, *, deliver: bool = True) -> None:
        """Let it go on. Without *deliver*, the signal that it is stopped for is dropped."""
        status = self.status
        if status is None:
            return
        self.status = None
        if status.kind is WaitKind.GROUP:
            ptrace_api.listen(self.tid)
        elif how is Resume.FREE:  # to look for a member of an enumeration takes as long as the request
            ptrace_api.cont(self.tid, self._signal_of(status) if deliver else 0)
        else:
            _REQUESTS[how](self.tid, self._signal_of(status) if deliver else 0)

    def resume_with(self, signo: int) -> None:
        """Let it go on with *signo* instead of the signal that it is stopped for."""
        self.status = None
        ptrace_api.cont(self.tid, signo)

    def detach(self) -> None:
        """Let it go on untraced, with the signal that it is stopped for; in a group-stop it stays stopped."""
        status = self.status
        self.status = None
        ptrace_api.detach(self.tid, self._signal_of(status) if status is not None else 0)

    def read_registers(self) -> Registers:
        """Return the general registers; valid until the next resume.

        Raises:
            SteppingError: the thread runs code of another architecture (32 bits).
        """
        return Registers.decode(self.layout, ptrace_api.getregset(self.tid, size=self.layout.codec.size))

    def write_registers(self, registers: Registers) -> None:
        """Replace the general registers."""
        ptrace_api.setregset(self.tid, registers.encode())

    def hold_signal(self) -> int:
        """Return the signal that it is stopped for (else 0); when it is reported again, its sender is restored."""
        if self.status is None or not self.pending_signal:
            return 0
        self._held = (self.status.signo, ptrace_api.getsiginfo(self.tid))
        return self.status.signo

    def drop_signal(self) -> None:
        """Let the signal that it is stopped for, if any, never be delivered: a trap that its tracer has caused."""
        self._dropped = True

    @property
    def pending_signal(self) -> int:
        """The signal that it gets when it is resumed or detached; 0 if none."""
        return self._signal_of(self.status) if self.status is not None else 0

    def _signal_of(self, status: WaitStatus) -> int:
        return status.signo if status.kind is WaitKind.SIGNAL_DELIVERY and not self._dropped else 0


def read_pid(tid: int) -> int:
    """Return the process (thread group) that thread *tid* belongs to.

    Raises:
        TraceeGoneError: there is no such thread.
    """
    return int(_read_status(tid, "Tgid:"))


def read_pending(tid: int) -> int:
    """Return the signals that wait for thread *tid* alone, signal n at bit n - 1.

    Raises:
        TraceeGoneError: there is no such thread.
    """
    return int(_read_status(tid, "SigPnd:"), 16)


def has_fault(tid: int) -> bool:
    """Whether thread *tid* has touched or executed what it must not, and has yet to be told so by its signal.

    A tracer's stop may be reported before that signal. It belongs to the instruction where the thread is now, and
    comes in the midst of a call made for us, though it is blocked. Source: kernel/signal.c
    (dequeue_synchronous_signal).
    """
    return bool(read_pending(tid) & _FAULTS)


def read_pending_of_process(pid: int) -> int:
    """Return the signals that wait for any thread of process *pid*, as `read_pending` does."""
    return int(_read_status(pid, "ShdPnd:"), 16)


def _read_status(tid: int, name: str) -> str:
    try:
        with open(f"/proc/{tid}/status", "rb", buffering=0) as file:
            text = file.readall()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(tid) from error
    _, found, rest = text.partition(b"\n" + name.encode("ascii"))
    if not found:
        raise SteppingError(f"/proc/{tid}/status has no {name} line")
    return rest.partition(b"\n")[0].decode("ascii")


def read_tids(pid: int) -> list[int]:
    """Return the threads of process *pid* now, lowest first.

    Raises:
        TraceeGoneError: there is no such process.
    """
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(pid) from error


def read_state(tid: int) -> str:
    """Return the letter of a thread's state (R, S, D, T, t, Z, X), or an empty string if it is gone."""
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return ""
