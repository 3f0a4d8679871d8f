"""Runs a whole program by single steps: all its threads, instruction by instruction, until it is gone.

Where nobody observes the instructions, those of a run of blocks are executed in one step (`block_steps`). The threads
run side by side, some thousand to ten thousand times slower than natively: those that wait in a call do so at the
same time, the others take turns of some 10 ms. Children that the program forks run natively. Signals, group-stops and
the exit status remain the program's own.

An observer sees each instruction after it was executed, with the registers before. On amd64 an instruction is stepped
over whole, so no thread is ever left in the middle of an atomic one; string instructions are seen once for each
repetition.
"""

import contextlib
from collections.abc import Callable

from stepping.breakpoints import Breakpoints
from stepping.errors import TraceeGoneError
from stepping.registers import Registers
from stepping.singlestep import StepExecutor, is_in_call, is_interrupted
from stepping.stop_results import is_step_trap
from stepping.tracee import Tracee
from stepping.tracee_group import TraceeGroup
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import Event, WaitKind, WaitStatus

#: So many times a thread is stopped while others that could run wait: whether it is in a tight loop or not, its turn
#: takes some 10 ms, as under a scheduler.
_TURN_STOPS = 300
_NO_CALL = (1 << 64) - 1

#: Is told of an instruction that was executed (of a syscall: when it is made): the thread, its registers before.
Observer = Callable[[int, Registers], None]


class SteppedRun:
    """The run of the stopped program of *group*."""

    def __init__(self, group: TraceeGroup, observe: Observer | None = None) -> None:
        self._group = group
        self._observe = observe
        leader = group.leader
        assert leader is not None
        self._memory = TraceeMemory(group.pid)
        self._stepper = StepExecutor(group, Breakpoints(self._memory, leader.layout))
        #: Instructions that were executed, at least.
        self.count = 0
        #: Threads that execute an instruction, with their registers before it if there is an observer.
        self._begun: dict[int, Registers | None] = {}

    def run(self) -> WaitStatus:
        """Run the program until it is gone; return how it ended."""
        reports = [report for tracee in self._group if (report := self._go_on(tracee))]
        with contextlib.suppress(TraceeGoneError):
            while len(self._group):
                others = self._stepper.others
                if others:
                    reports += others
                    others.clear()
                report = reports.pop() if reports else self._group.wait()
                while report is not None:
                    report = self._take(*report)
        self._memory.close()
        if self._group.exit is None:
            raise TraceeGoneError(self._group.pid)
        return self._group.exit

    def _take(self, tracee: Tracee, status: WaitStatus) -> tuple[Tracee, WaitStatus] | None:
        """Deal with a report; return the next one of the same thread, if it has made one meanwhile."""
        try:
            return self._handle(tracee, status)
        except TraceeGoneError:
            return None

    def _handle(self, tracee: Tracee, status: WaitStatus) -> tuple[Tracee, WaitStatus] | None:
        has_begun = tracee.tid in self._begun
        begun = self._begun.pop(tracee.tid, None)
        if not status.is_stop:
            return None
        stepped = is_step_trap(tracee, status)
        if has_begun and (stepped or status.kind is WaitKind.SYSCALL):
            self.count += 1
            if self._observe is not None and begun is not None:
                self._observe(tracee.tid, begun)
        if tracee.pid != self._group.pid:
            tracee.detach()
            self._group.tracees.pop(tracee.tid, None)
            return None
        if status.event is Event.EXEC:
            self._memory.close()
            self._memory = TraceeMemory(self._group.pid)
            others = self._stepper.others
            self._stepper = StepExecutor(self._group, Breakpoints(self._memory, tracee.layout))
            self._stepper.others = others
        elif status.kind is WaitKind.GROUP:
            tracee.resume()
            return None
        elif stepped:
            tracee.drop_signal()
        return self._go_on(tracee)

    def _go_on(self, tracee: Tracee) -> tuple[Tracee, WaitStatus] | None:
        """Let a thread execute instructions, or one; return what it reports if that is no step's end."""
        registers = tracee.read_registers()
        if not _may_call_again(registers):
            if self._observe is None:
                turn = self._stepper.step_through(tracee, registers.pc, _TURN_STOPS)
            else:
                turn = self._stepper.step_observed(tracee, registers, _TURN_STOPS, self._observe)
            if turn is not None:
                self.count += turn[0]
                if not is_step_trap(tracee, turn[1]):
                    return tracee, turn[1]
                tracee.drop_signal()
                registers = tracee.read_registers()
        if is_in_call(tracee) or (is_interrupted(registers) and not tracee.pending_signal):
            self._stepper.begin_call(tracee)
            return None
        if not tracee.pending_signal:
            self._begun[tracee.tid] = registers if self._observe is not None else None
        if self._stepper.is_at_call(tracee, registers.pc):
            self._stepper.begin_call(tracee)
        else:
            self._stepper.begin(tracee)
        return None


def _may_call_again(registers: Registers) -> bool:
    """Whether the kernel may have the thread, which has just left a call, make that again."""
    pending = registers.layout.pending
    return pending is not None and registers[pending] != _NO_CALL
