"""A program that runs on this machine's processor, under ptrace.

While it is stopped, all its threads are. A single step lets its thread run alone, unless the thread is in a syscall,
or at one: that may wait for the others, so they run, too. Signals that arrive during single steps and are of no
interest (Go's preemption) are put off until the program runs freely: their handlers would be stepped through.

Children that the program forks are let go at once, without the breakpoints that they have inherited. A child after
vfork shares the program's memory until its exec; it dies if it meets a breakpoint.

Source: ptrace(2).
"""

import contextlib
import ctypes
import os
import signal

from ptserver.debugger.target import QUIET_SIGNALS, Stop
from stepping import ptrace_api
from stepping.breakpoints import Breakpoints
from stepping.errors import SteppingError, TraceeGoneError
from stepping.executor import (
    AboutToCall,
    CannotExecute,
    CountUsedUp,
    Execed,
    Exited,
    Interrupted,
    LeftRange,
    MemoryFault,
    NewTask,
    Reached,
    RunResult,
    Signalled,
    Until,
)
from stepping.launch import Program
from stepping.native import NativeExecutor
from stepping.ptrace_api import FOLLOW_ALL, RegisterSet
from stepping.registers import Registers
from stepping.stop_results import result_of_stop
from stepping.tracee import Resume, Tracee
from stepping.tracee_group import TraceeGroup
from stepping.tracee_launch import launch_stopped
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import Event, WaitKind, WaitStatus
from stepping.watchpoints import Watchpoint, Watchpoints

_ONE = Until(instructions=1)
_VECTOR_BYTES = 8192
_VECTORS = {"amd64": RegisterSet.X86_XSTATE, "arm64": RegisterSet.FLOAT}
_NOT_IN_CALL = (1 << 64) - 1

_libc = ctypes.CDLL(None, use_errno=True)


class NativeTarget:
    """See `target.Target`. group: the tracees of the process, all stopped."""

    def __init__(self, group: TraceeGroup, path: str) -> None:
        leader = group.leader or next(iter(group))
        self.pid = group.pid
        self.path = path
        self.layout = leader.layout
        self._group = group
        self._memory = TraceeMemory(self.pid)
        self._breakpoints = Breakpoints(self._memory, self.layout)
        self._executor = NativeExecutor(group, self._breakpoints)
        self._watchpoints = Watchpoints()
        self._calls: frozenset[int] | None = frozenset()
        self._pending: list[Stop] = []
        self._held: list[tuple[int, int]] = []
        self._interrupted = False

    @classmethod
    def launch(cls, path: str, argv: list[bytes], env: list[bytes], stdin: int = 0) -> "NativeTarget":
        """Start a program, stopped at its first instruction. It dies with this process.

        stdin: the descriptor that becomes its standard input.

        Raises:
            ExecError, PtraceRefusedError: the kernel refuses.
        """
        return cls(launch_stopped(Program(path, argv, env, stdio=(stdin, 1, 2)), FOLLOW_ALL), path)

    @classmethod
    def attach(cls, pid: int) -> "NativeTarget":
        """Stop a running process, all of it.

        Raises:
            PtraceRefusedError, TraceeGoneError: it cannot be traced.
        """
        group = TraceeGroup.attach(pid, FOLLOW_ALL)
        group.stop_all()
        return cls(group, os.path.realpath(f"/proc/{pid}/exe"))

    @property
    def tids(self) -> list[int]:
        """See `Target.tids`."""
        return sorted(
            (tracee.tid for tracee in self._group if tracee.pid == self.pid), key=lambda tid: tid != self.pid
        )

    def read_registers(self, tid: int) -> Registers:
        """See `Target.read_registers`."""
        return self._tracee(tid).read_registers()

    def write_registers(self, tid: int, registers: Registers) -> None:
        """See `Target.write_registers`."""
        self._tracee(tid).write_registers(registers)

    def read_vectors(self, tid: int) -> bytes:
        """See `Target.read_vectors`."""
        return ptrace_api.getregset(tid, _VECTORS[self.layout.arch], _VECTOR_BYTES)

    def write_vectors(self, tid: int, data: bytes) -> None:
        """See `Target.write_vectors`."""
        ptrace_api.setregset(tid, data, _VECTORS[self.layout.arch])

    def read_memory(self, address: int, size: int) -> bytes:
        """See `Target.read_memory`."""
        return self._breakpoints.read(address, size)

    def write_memory(self, address: int, data: bytes) -> None:
        """See `Target.write_memory`."""
        self._breakpoints.write(address, data)

    def read_auxv(self) -> bytes:
        """See `Target.read_auxv`."""
        with open(f"/proc/{self.pid}/auxv", "rb") as file:
            return file.read()

    def insert_breakpoint(self, address: int) -> None:
        """See `Target.insert_breakpoint`."""
        self._breakpoints.insert(address)

    def remove_breakpoint(self, address: int) -> None:
        """See `Target.remove_breakpoint`."""
        self._breakpoints.remove(address)

    def insert_watchpoint(self, watchpoint: Watchpoint) -> None:
        """See `Target.insert_watchpoint`."""
        self._watchpoints.insert(watchpoint, self._threads())

    def remove_watchpoint(self, watchpoint: Watchpoint) -> None:
        """See `Target.remove_watchpoint`."""
        self._watchpoints.remove(watchpoint, self._threads())

    def stop_at_calls(self, numbers: frozenset[int] | None) -> None:
        """See `Target.stop_at_calls`."""
        self._calls = numbers

    def drop_signal(self, tid: int) -> None:
        """See `Target.drop_signal`."""
        self._tracee(tid).drop_signal()

    def interrupt(self) -> None:
        """See `Target.interrupt`."""
        self._interrupted = True
        for tracee in self._group:
            if not tracee.is_stopped:
                with contextlib.suppress(SteppingError):
                    tracee.interrupt()

    def step(self, tid: int) -> Stop:
        """See `Target.step`."""
        return self._step(tid, _ONE)

    def step_within(self, tid: int, low: int, high: int) -> Stop:
        """See `Target.step_within`."""
        return self._step(tid, Until(within=(low, high), syscalls=True))

    def _step(self, tid: int, until: Until) -> Stop:
        self._interrupted = False
        if self._pending:
            return self._pending.pop(0)
        tracee = self._tracee(tid)
        behind = self._behind_call(tracee)
        if behind:
            return self._step_through_call(tid, behind)
        while True:
            result = self._executor.run(tracee, until)
            if isinstance(result, AboutToCall):
                return Stop("step", tid, result.pc)  # the call is another step
            if isinstance(result, Signalled) and result.signo in QUIET_SIGNALS:
                self._held.append((tid, result.signo))
                tracee.drop_signal()
            elif isinstance(result, Interrupted) and not self._interrupted:
                continue  # the stop of an interrupt that was asked for before
            else:
                self._interrupted = False
                return self._stop_of(tracee, result)

    def cont(self) -> Stop:
        """See `Target.cont`."""
        self._interrupted = False
        if self._pending:
            return self._pending.pop(0)
        for tid, signo in self._held:
            _libc.tgkill(self.pid, tid, signo)
        self._held.clear()
        for tracee in self._group:
            stop = self._step_off_breakpoint(tracee)
            if stop is not None:
                return stop
        return self._run_all()

    def detach(self) -> None:
        """See `Target.detach`."""
        self._breakpoints.remove_all()
        self._watchpoints.remove_all(self._threads())
        for tid, signo in self._held:
            _libc.tgkill(self.pid, tid, signo)
        self._group.detach_all()
        self._memory.close()

    def kill(self) -> None:
        """See `Target.kill`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(TraceeGoneError):
            while self._group.exit is None:
                self._group.wait()
        self._memory.close()

    # -- running ----------------------------------------------------------------------------------------------

    def _threads(self) -> list[Tracee]:
        """Return the program's own threads, without its children."""
        return [tracee for tracee in self._group if tracee.pid == self.pid]

    def _tracee(self, tid: int) -> Tracee:
        tracee = self._group.tracees.get(tid)
        if tracee is None:
            raise TraceeGoneError(tid)
        return tracee

    def _behind_call(self, tracee: Tracee) -> int:
        """Return where the thread will be after the syscall that it is in or in front of; 0 if it is at none."""
        registers = tracee.read_registers()
        instruction = self.layout.syscall_instruction
        if self._breakpoints.read(registers.pc, len(instruction)) == instruction:
            return registers.pc + len(instruction)
        pending = self.layout.pending
        if pending is None or registers[pending] == _NOT_IN_CALL or tracee.status is None:
            return 0
        # Stopped inside a call by an interrupt or an event: the call goes on, or is made again, when it is resumed.
        return registers.pc if tracee.status.kind in (WaitKind.EVENT, WaitKind.SYSCALL) else 0

    def _step_through_call(self, tid: int, behind: int) -> Stop:
        existed = behind in self._breakpoints
        calls, self._calls = self._calls, frozenset()
        self._breakpoints.insert(behind)
        try:
            while True:
                stop = self._run_all()
                if stop.reason != "breakpoint" or stop.pc != behind:
                    return stop
                if stop.tid == tid:
                    return stop._replace(reason="step")
                if existed:
                    return stop
                self._step_off_breakpoint(self._tracee(stop.tid))
        finally:
            self._calls = calls
            if not existed:
                self._breakpoints.remove(behind)

    def _step_off_breakpoint(self, tracee: Tracee) -> Stop | None:
        """Execute the instruction under the breakpoint that a thread is at; a stop if something else happened."""
        if tracee.pid != self.pid or tracee.read_registers().pc not in self._breakpoints:
            return None
        if self._behind_call(tracee) == tracee.read_registers().pc:
            return None  # it is still in the call in front of the breakpoint
        result = self._executor.run(tracee, _ONE)
        if isinstance(result, CountUsedUp):
            return None
        if isinstance(result, Signalled) and result.signo in QUIET_SIGNALS:
            return None  # delivered when it goes on, and the breakpoint is met again afterwards
        return self._stop_of(tracee, result)

    def _run_all(self) -> Stop:
        """Resume everybody; stop everybody again when something of interest has happened."""
        for tracee in self._group:
            with contextlib.suppress(TraceeGoneError):
                tracee.resume(self._how())
        while True:
            try:
                report = self._group.wait()
            except TraceeGoneError:
                return self._ended()
            assert report is not None
            stop = self._handle(*report)
            if stop is not None:
                if stop.reason != "exited":
                    self._stop_others(stop.tid)
                return stop

    def _how(self) -> Resume:
        return Resume.FREE if self._calls == frozenset() else Resume.SYSCALL

    def _handle(self, tracee: Tracee, status: WaitStatus) -> Stop | None:
        if self._group.exit is not None:
            return self._ended()
        if not status.is_stop:
            return None
        try:
            if tracee.pid != self.pid:
                self._let_go(tracee)
                return None
            if status.event is Event.STOP and self._watchpoints:
                self._watchpoints.apply(tracee)  # it may be a new thread
            if status.event is Event.STOP and not self._interrupted:
                tracee.resume(self._how())  # a new thread's first stop, or an interrupt that came late
                return None
            stop = self._stop_of(tracee, result_of_stop(tracee, status, self._breakpoints))
            if stop.reason in ("step", "exited") or self._is_quiet(stop):
                tracee.resume(self._how())
                return None
        except TraceeGoneError:
            return None
        self._interrupted = False
        return stop

    def _is_quiet(self, stop: Stop) -> bool:
        if stop.reason == "signal":
            return stop.signo in QUIET_SIGNALS
        if stop.reason == "syscall":
            return self._calls is not None and stop.number not in self._calls
        return False

    def _let_go(self, child: Tracee) -> None:
        with contextlib.suppress(OSError, SteppingError):
            memory = TraceeMemory(child.tid)
            try:
                self._breakpoints.remove_from_copy(memory)
            finally:
                memory.close()
        child.detach()
        self._group.tracees.pop(child.tid, None)

    def _stop_others(self, tid: int) -> None:
        """Stop the world. What has happened to others meanwhile are the next stops."""
        with contextlib.suppress(TraceeGoneError):
            self._group.stop_all()
        for tracee in self._group:
            status = tracee.status
            if tracee.tid == tid or status is None or tracee.pid != self.pid:
                continue
            with contextlib.suppress(TraceeGoneError):
                if status.kind is WaitKind.SIGNAL_DELIVERY:
                    stop = self._stop_of(tracee, result_of_stop(tracee, status, self._breakpoints))
                    if not self._is_quiet(stop):
                        self._pending.append(stop)

    def _ended(self) -> Stop:
        status = self._group.exit
        self._breakpoints.forget_all()
        return Stop("exited", self.pid, status=status.raw_end if status is not None else 0)

    def _stop_of(self, tracee: Tracee, result: RunResult | None) -> Stop:
        tid = tracee.tid
        match result:
            case CountUsedUp(pc) | LeftRange(pc) | Reached(pc) | Signalled(pc, signal.SIGTRAP) if (
                watchpoint := self._watchpoints.take_hit(tracee)
            ):
                if isinstance(result, Signalled):
                    tracee.drop_signal()
                return Stop("watchpoint", tid, pc, watchpoint=watchpoint)
            case Reached(pc):
                return Stop("breakpoint", tid, pc)
            case Signalled(pc, signo) | MemoryFault(pc, _, _, signo) | CannotExecute(pc, _, _, signo):
                if signo == signal.SIGINT:
                    tracee.drop_signal()  # a user's key, which was meant for the debugger
                    return Stop("interrupt", tid, pc)
                return Stop("signal", tid, pc, signo)
            case AboutToCall(pc, number, args):
                return Stop("syscall", tid, pc, number=number, args=args)
            case Interrupted(pc):
                return Stop("interrupt", tid, pc)
            case Execed(pc):
                self._after_exec()
                return Stop("exec", self.pid, pc)
            case Exited(status):
                if self._group.exit is not None or not len(self._group):
                    return self._ended()
                return Stop("exited", tid, status=status.raw_end)
            case NewTask(pc):
                return Stop("step", tid, pc)
        return Stop("step", tid, tracee.read_registers().pc)

    def _after_exec(self) -> None:
        self._watchpoints.forget_all()
        self._memory.close()
        self._memory = TraceeMemory(self.pid)
        self._breakpoints = Breakpoints(self._memory, self.layout)
        self._executor = NativeExecutor(self._group, self._breakpoints)
        self._pending.clear()
        self.path = os.path.realpath(f"/proc/{self.pid}/exe")
