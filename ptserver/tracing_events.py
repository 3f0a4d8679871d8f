"""What the sources of `stepping` report, as the trace log's events; and return addresses as functions and lines."""

import os
from collections.abc import Callable, Sequence

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from ptserver.tracelog.events import Event, ExitEvent, Frame, SignalEvent, SyscallEvent, ThreadEvent
from stepping.syscall_stops import Traced, TracedCall, TracedExit, TracedSignal, TracedStart
from stepping.syscalls.marshal import Args
from stepping.syscalls.model import Syscall
from stepping.wait_status import WaitKind

_MAX_ERRNO = 4095
_CACHED_PCS = 1 << 16

#: Names the frames of a stack; None where nobody asked for stacks.
NameFrames = Callable[[Sequence[int]], tuple[Frame, ...]]


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


def ring_event_maker(name_frames: NameFrames | None) -> Callable[..., SyscallEvent]:
    """Return what makes an event of the fields of a `stepping.ring.RingCall`, for `Ring.read_as`."""

    def make(
        tid: int,
        pid: int,
        row: Syscall,
        args: Args,
        ins: dict[int, bytes],
        outs: dict[int, bytes],
        started_ns: int,
        duration_ns: int,
        value: int,
        goid: int,
        frames: tuple[int, ...],
    ) -> SyscallEvent:
        errno = 0
        if value < 0 and value >= -_MAX_ERRNO:
            value, errno = -1, -value
        stack = name_frames(frames) if name_frames is not None else ()
        return SyscallEvent(
            started_ns,
            duration_ns,
            pid,
            tid,
            row.name,
            args,
            ins,
            outs,
            value,
            errno,
            False,
            goid or None,
            stack,
        )

    return make


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
    """Names return addresses of one Go program, each once. load_bias: to be set before the first one."""

    def __init__(self, path: str) -> None:
        """Open the program's file.

        Raises:
            OSError, GoAbiError: it cannot be read.
        """
        self._binary = GoBinary.open(path, prefer_table=True)
        self.load_bias = 0
        self._known: dict[int, tuple[Frame, ...]] = {}

    def __call__(self, frames: Sequence[int]) -> tuple[Frame, ...]:
        """Return the frames, inlined calls as frames of their own, innermost first."""
        known = self._known
        named: list[Frame] = []
        for pc in frames:
            found = known.get(pc)
            if found is None:
                if len(known) >= _CACHED_PCS:
                    known.clear()
                found = known[pc] = self._name(pc)
            named += found
        return tuple(named)

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
