"""Traces the syscalls of any program by stopping it at them: what works where the ring does not.

A launched program carries a seccomp filter that stops just the calls wanted (PTRACE_EVENT_SECCOMP at entry, then
a syscall-stop at exit); an attached one stops at every call, because a filter cannot be added to it from outside.
Either way a traced call costs some 50 to 100 microseconds, most of it the four switches between the processes.

Threads and children are followed. Signals, group-stops and exit statuses remain the program's own. What a
launched program does before its exec is not reported, its first execve is.

Everything runs on the thread that attached or launched; reports go to a function that must not raise.

Source: ptrace(2), seccomp(2).
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from stepping import ptrace_api
from stepping.errors import SteppingError, TraceeGoneError
from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_ALL, Option
from stepping.stops import SyscallEntry, SyscallExit, decode_syscall_info
from stepping.syscall_copies import COPY_LIMIT_BYTES, ClippedMemory, copy_ins, copy_outs
from stepping.syscalls.marshal import Args, Gathered
from stepping.syscalls.model import Arch, Syscall
from stepping.tracee import Resume, Tracee
from stepping.tracee_group import NEW_TASK_EVENTS, TraceeGroup
from stepping.tracee_launch import PendingExec, fork_tracee
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import Event, WaitKind, WaitStatus


class TracedCall(NamedTuple):
    """A call that was made.

    args: the six registers; ins, outs: copies by argument index (`syscall_copies`); started_ns: by
    CLOCK_MONOTONIC; value: the raw result, negative errno included, or None if the call never returned (it
    ended the thread, or something else did). -512 to -516 are the kernel's own: it will restart the call.
    """

    tid: int
    pid: int
    row: Syscall
    args: Args
    ins: dict[int, bytes]
    outs: dict[int, bytes]
    started_ns: int
    duration_ns: int
    value: int | None


class TracedSignal(NamedTuple):
    """A signal is delivered to a thread. siginfo: as `stops.decode_siginfo` takes it."""

    tid: int
    pid: int
    time_ns: int
    signo: int
    siginfo: bytes


class TracedStop(NamedTuple):
    """A thread is in a group-stop, by signal *signo*, and waits for a SIGCONT."""

    tid: int
    pid: int
    time_ns: int
    signo: int


class TracedStart(NamedTuple):
    """A thread was created (if tid == pid, with its process)."""

    tid: int
    pid: int
    time_ns: int


class TracedExit(NamedTuple):
    """A thread is gone; if tid == pid, so is its process. status: as waited for."""

    tid: int
    pid: int
    time_ns: int
    status: WaitStatus


Traced = TracedCall | TracedSignal | TracedStop | TracedStart | TracedExit
Sink = Callable[[Traced], None]


class _Pending(NamedTuple):
    pid: int
    row: Syscall
    call: Gathered
    started_ns: int


class SyscallTracer:
    """The trace of one program: its group of tracees, and the calls that they are in.

    rows: the calls wanted. filtered: the program's own filter stops it at those, and only those.
    """

    def __init__(
        self,
        group: TraceeGroup,
        rows: Iterable[Syscall],
        sink: Sink,
        *,
        arch: Arch,
        filtered: bool,
        copy_limit_bytes: int = COPY_LIMIT_BYTES,
    ) -> None:
        self.group = group
        self._rows = {row.numbers[arch]: row for row in rows if arch in row.numbers}
        self._arch = arch
        self._sink = sink
        self._filtered = filtered
        self._copy_limit = copy_limit_bytes
        self._pending: dict[int, _Pending] = {}
        self._memories: dict[int, ClippedMemory] = {}
        self._files: dict[int, TraceeMemory] = {}
        #: Until the program's exec only an execve is of interest.
        self._launching: PendingExec | None = None

    @classmethod
    def launch(
        cls,
        program: Program,
        rows: Iterable[Syscall],
        sink: Sink,
        *,
        arch: Arch,
        copy_limit_bytes: int = COPY_LIMIT_BYTES,
    ) -> "SyscallTracer":
        """Start *program*; its filter, if it has one, must return TRACE for exactly *rows*.

        Returns when the program is about to execute its first instruction.

        Raises:
            ExecError, SeccompRefusedError, PtraceRefusedError: the kernel refuses.
        """
        options = FOLLOW_ALL | (Option.SECCOMP if program.bpf is not None else Option(0))
        pending = fork_tracee(program, options, interrupted=program.bpf is None)
        group = TraceeGroup(pending.tracee.pid)
        group.add(pending.tracee)
        tracer = cls(
            group,
            rows,
            sink,
            arch=arch,
            filtered=program.bpf is not None,
            copy_limit_bytes=copy_limit_bytes,
        )
        tracer._launching = pending
        while tracer._launching is not None:
            tracer.step()
            if group.exit is not None:
                pending.raise_failure()
        return tracer

    @classmethod
    def attach(
        cls,
        pid: int,
        rows: Iterable[Syscall],
        sink: Sink,
        *,
        arch: Arch,
        copy_limit_bytes: int = COPY_LIMIT_BYTES,
    ) -> "SyscallTracer":
        """Trace a running process, with its threads and the children that it makes from now on.

        Raises:
            PtraceRefusedError, TraceeGoneError: it cannot be traced.
        """
        group = TraceeGroup.attach(pid, FOLLOW_ALL)
        tracer = cls(group, rows, sink, arch=arch, filtered=False, copy_limit_bytes=copy_limit_bytes)
        for tracee in group:
            with contextlib.suppress(TraceeGoneError):
                tracee.interrupt()
        return tracer

    def run(self) -> WaitStatus:
        """Trace until no process is left; return how the first one ended."""
        with contextlib.suppress(TraceeGoneError):
            while len(self.group):
                self.step()
        self.close()
        if self.group.exit is None:
            raise TraceeGoneError(self.group.pid)
        return self.group.exit

    def step(self, *, block: bool = True) -> bool:
        """Wait for one report of any tracee and act on it; false if there is none now and *block* is false.

        Raises:
            TraceeGoneError: no tracee is left.
        """
        report = self.group.wait(block=block)
        if report is None:
            return False
        tracee, status = report
        try:
            self._handle(tracee, status)
        except TraceeGoneError:
            pass  # its last report is still to come
        return True

    def detach(self) -> None:
        """Let all tracees go on untraced, and report the calls that they are in as unfinished.

        Only for attached programs: a launched one cannot live without its tracer.
        """
        with contextlib.suppress(TraceeGoneError):
            self.group.detach_all()
        for tid in list(self._pending):
            self._finish(tid, None)
        self.close()

    def close(self) -> None:
        """Give up all descriptors."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._memories.clear()

    def _handle(self, tracee: Tracee, status: WaitStatus) -> None:
        how = Resume.FREE if self._filtered else Resume.SYSCALL
        match status.kind:
            case WaitKind.SYSCALL:
                self._at_syscall(tracee)
            case WaitKind.SIGNAL_DELIVERY:
                siginfo = ptrace_api.getsiginfo(tracee.tid)
                now = time.monotonic_ns()
                self._sink(TracedSignal(tracee.tid, tracee.pid, now, status.signo, siginfo))
            case WaitKind.GROUP:
                self._sink(TracedStop(tracee.tid, tracee.pid, time.monotonic_ns(), status.signo))
            case WaitKind.EVENT if status.event is Event.SECCOMP:
                self._at_syscall(tracee)
            case WaitKind.EVENT if status.event is Event.EXEC:
                self._at_exec(tracee)
            case WaitKind.EVENT if status.event in NEW_TASK_EVENTS:
                self._at_clone(tracee)
            case WaitKind.EXITED | WaitKind.KILLED:
                self._at_exit(tracee, status)
                return
        # Until a traced call returns, its thread must stop at the exit of it, whatever else happens before.
        if tracee.tid in self._pending:
            how = Resume.SYSCALL
        tracee.resume(how)

    def _at_syscall(self, tracee: Tracee) -> None:
        info = decode_syscall_info(ptrace_api.get_syscall_info(tracee.tid))
        if isinstance(info, SyscallExit):
            if tracee.tid in self._pending:
                self._finish(tracee.tid, info.value)
        elif isinstance(info, SyscallEntry):
            row = self._rows.get(info.nr) if info.arch == self._arch else None  # type: ignore[call-overload]
            if row is not None and (self._launching is None or row.name.startswith("exec")):
                call = copy_ins(row, info.args, self._memory(tracee.pid))
                self._pending[tracee.tid] = _Pending(tracee.pid, row, call, time.monotonic_ns())

    def _finish(self, tid: int, value: int | None) -> None:
        now = time.monotonic_ns()
        pending = self._pending.pop(tid)
        if self._launching is not None:
            return  # an exec that failed, on a way along PATH
        outs = {}
        if value is not None and pending.call.outs:
            outs = copy_outs(pending.row, pending.call, value, self._memory(pending.pid))
        self._sink(
            TracedCall(
                tid,
                pending.pid,
                pending.row,
                pending.call.args,
                pending.call.ins,
                outs,
                pending.started_ns,
                now - pending.started_ns,
                value,
            )
        )

    def _at_exec(self, tracee: Tracee) -> None:
        if self._launching is not None:
            self._launching.close()
            self._launching = None
        self._forget_memory(tracee.pid)
        # The thread that called execve has become the first one; the call is its, and it has yet to return.
        former = ptrace_api.geteventmsg(tracee.tid)
        if former != tracee.tid and former in self._pending:
            if tracee.tid in self._pending:
                self._finish(tracee.tid, None)
            self._pending[tracee.tid] = self._pending.pop(former)

    def _at_clone(self, tracee: Tracee) -> None:
        child = self.group.tracees.get(ptrace_api.geteventmsg(tracee.tid))
        if child is not None:
            self._sink(TracedStart(child.tid, child.pid, time.monotonic_ns()))

    def _at_exit(self, tracee: Tracee, status: WaitStatus) -> None:
        if tracee.tid in self._pending:
            self._finish(tracee.tid, None)
        if tracee.tid == tracee.pid:
            self._forget_memory(tracee.pid)
        self._sink(TracedExit(tracee.tid, tracee.pid, time.monotonic_ns(), status))

    def _memory(self, pid: int) -> ClippedMemory:
        memory = self._memories.get(pid)
        if memory is None:
            try:
                self._files[pid] = TraceeMemory(pid)
            except OSError as error:
                raise TraceeGoneError(pid) from error
            memory = self._memories[pid] = ClippedMemory(self._files[pid], self._copy_limit)
        return memory

    def _forget_memory(self, pid: int) -> None:
        if self._memories.pop(pid, None) is not None:
            self._files.pop(pid).close()


def rows_named(names: Collection[str], rows: Iterable[Syscall]) -> list[Syscall]:
    """Return the rows of *rows* whose names are in *names*, in table order.

    Raises:
        SteppingError: a name is not in the table.
    """
    found = [row for row in rows if row.name in names]
    unknown = set(names) - {row.name for row in found}
    if unknown:
        raise SteppingError(f"no such syscall: {', '.join(sorted(unknown))}")
    return found
