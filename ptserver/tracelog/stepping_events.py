"""What the sources of `stepping` report, as the trace log's events; and return addresses as functions and lines."""

import os

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from ptserver.tracelog.events import Event, ExitEvent, Frame, SignalEvent, SyscallEvent, ThreadEvent
from stepping.ring import unpack_stack
from stepping.syscall_stops import Traced, TracedCall, TracedExit, TracedSignal, TracedStart
from stepping.wait_status import WaitKind

_MAX_ERRNO = 4095
_CACHED_STACKS = 1 << 14


def event_of_traced(traced: Traced) -> Event | None:
    """Return the event for a report of a trace by stops; None for one that the log does not show."""
    match traced:
        case TracedCall():
            return _call_event(traced)
        case TracedSignal(tid, pid, time_ns, signo, siginfo):
            return SignalEvent(time_ns, pid, tid, signo, siginfo)
        case TracedStart(tid, pid, time_ns):
            return ThreadEvent(time_ns, pid, tid, "created")
        case TracedExit(tid, pid, time_ns, status):
            if tid != pid:
                return ThreadEvent(time_ns, pid, tid, "exited")
            killed = status.kind is WaitKind.KILLED
            return ExitEvent(
                time_ns, pid, tid, None if killed else status.exit_status, status.signo, status.core_dumped
            )
    return None


def _call_event(call: TracedCall) -> SyscallEvent:
    value, errno = call.value, 0
    if value is not None and -_MAX_ERRNO <= value < 0:
        value, errno = -1, -value
    return SyscallEvent(
        call.started_ns,
        None if value is None else call.duration_ns,
        call.pid,
        call.tid,
        call.row.name,
        call.args,
        call.ins,
        call.outs,
        value,
        errno,
        value is None,
    )


class FrameNames:
    """Names the stacks of one Go program; the same stack is the same tuple. load_bias: to be set before the first."""

    def __init__(self, path: str) -> None:
        """Open the program's file.

        Raises:
            OSError, GoAbiError: it cannot be read.
        """
        self._binary = GoBinary.open(path, prefer_table=True)
        self.load_bias = 0
        self._stacks: dict[bytes, tuple[Frame, ...]] = {}

    def __call__(self, addresses: bytes) -> tuple[Frame, ...]:
        """Return the frames of an item of `RingBatch.stacks`, those of inlined calls too, innermost first."""
        stack = self._stacks.get(addresses)
        if stack is None:
            if len(self._stacks) >= _CACHED_STACKS:
                self._stacks.clear()
            frames = (frame for pc in unpack_stack(addresses) for frame in self._name(pc))
            stack = self._stacks[addresses] = tuple(frames)
        return stack

    def function_at(self, pc: int) -> str:
        """Return the name of the function at an address, empty if there is none."""
        function = self._binary.functions.find_function(pc - self.load_bias)
        return function.name if function is not None else ""

    def close(self) -> None:
        """Give up the file."""
        self._binary.close()

    def _name(self, pc: int) -> tuple[Frame, ...]:
        try:
            found = self._binary.functions.frames_at(pc - self.load_bias, is_return_address=True)
        except GoAbiError:
            found = ()
        return tuple(Frame(one.function, one.file, one.line, pc) for one in found) or (Frame("", pc=pc),)


def exe_identity(pid: int) -> tuple[int, int] | None:
    """Return what tells the program that *pid* executes from another; None if it is gone."""
    try:
        status = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return status.st_dev, status.st_ino
