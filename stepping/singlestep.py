"""Runs a thread one instruction at a time, on the processor itself (PTRACE_SINGLESTEP).

Each instruction costs two switches between processes, some 30 microseconds on the virtual machines that this was
measured on, so this is for looking closely: where a thread goes, what an instruction touches.

Two things are not as simple as stepping:

- The trap after a step is forced upon the thread: a thread that blocks SIGTRAP would lose its handler for it. So it
  is unblocked while the thread is stepped. Go blocks all signals while it creates threads.
- A syscall is not stepped over but run up to its syscall-exit-stop, which forces no signal. So what the call does
  to the signal mask stays, too.

`StepExecutor.step_block` asks for a stop after the next jump that is taken (PTRACE_SINGLEBLOCK), for `native`. It
serves no counts: a jump that is not taken ends a block, too.

Source: ptrace(2); arch/x86/kernel/step.c; kernel/signal.c (force_sig).
"""

import contextlib
import platform
import signal
from collections.abc import Callable

from stepping import ptrace_api
from stepping.block_steps import BlockSteps
from stepping.blocks import Decoder
from stepping.breakpoints import Breakpoints
from stepping.decoded_code import DecodedCode
from stepping.errors import SteppingError, TraceeGoneError
from stepping.executor import AboutToCall, CountUsedUp, LeftRange, Reached, RunResult, Until
from stepping.instructions import Flow
from stepping.registers import Registers
from stepping.stop_results import is_processors_trap, is_step_trap, read_code, result_of_stop
from stepping.stops import SyscallEntry, decode_syscall_info
from stepping.tracee import Resume, Tracee
from stepping.tracee_group import TraceeGroup
from stepping.wait_status import Event, WaitKind, WaitStatus

_NO_CALL = (1 << 64) - 1
#: What interrupted calls return within the kernel: ERESTARTSYS, NOINTR, NOHAND and RESTARTBLOCK.
_RESTARTS = frozenset({-512, -513, -514, -516})
#: More instructions than are executed in a lifetime.
_MANY = 1 << 62
_TRAP_BIT = 1 << (signal.SIGTRAP - 1)
_NOT_STEPPED = frozenset({Flow.SYSCALL, Flow.TRAP})
_IN_CALL = (Event.CLONE, Event.FORK, Event.VFORK, Event.VFORK_DONE, Event.EXEC, Event.SECCOMP)

#: Is told of each instruction that is about to be executed: the thread and the address.
Observer = Callable[[Tracee, int], None]


class StepExecutor:
    """Steps threads of *group*. breakpoints: those in its memory; observe: is told of every instruction."""

    def __init__(self, group: TraceeGroup, breakpoints: Breakpoints, observe: Observer | None = None) -> None:
        self._group = group
        self._breakpoints = breakpoints
        self._observe = observe
        self._known_code: DecodedCode | None = None
        self._block_steps: BlockSteps | None = None
        #: What other threads have reported during `step_through`; whoever steps several threads takes it.
        self.others: list[tuple[Tracee, WaitStatus]] = []
        #: Whether threads can be stopped by the processor's own breakpoints, as far as is known.
        self._has_breakpoints = platform.machine() == "x86_64"
        #: Signal masks of threads whose SIGTRAP was unblocked, and those that have it unblocked anyway.
        self._masks: dict[int, int] = {}
        self._unmasked: set[int] = set()

    def run(self, tracee: Tracee, until: Until) -> RunResult:
        """See `executor.Executor.run`."""
        steps, blocks = until.instructions or 0, until.blocks or 0
        self._unmasked.discard(tracee.tid)
        try:
            pc = tracee.read_registers().pc
            while True:
                flow = self._flow_at(tracee, pc)
                if self._may_step_on(tracee, pc, flow, until):
                    done, result = self._step_far(tracee, pc, steps or _MANY, until)
                else:
                    done, result = 1, self._step(tracee, pc, flow)
                if result is not None:
                    return result
                pc = tracee.read_registers().pc
                steps -= done
                blocks -= flow is not Flow.NEXT
                if pc in until.addresses or pc in self._breakpoints:
                    return Reached(pc)
                if until.is_outside(pc):
                    return LeftRange(pc)
                if steps == 0 or (blocks == 0 and flow is not Flow.NEXT):
                    return CountUsedUp(pc)
                if until.syscalls and self._flow_at(tracee, pc) is Flow.SYSCALL:
                    return about_to_call(tracee)
        finally:
            with contextlib.suppress(TraceeGoneError):
                self._restore_mask(tracee)

    def _may_step_on(self, tracee: Tracee, pc: int, flow: Flow, until: Until) -> bool:
        """Whether nothing needs to be known of the instruction but that it was executed."""
        return (
            self._observe is None
            and until.blocks is None
            and flow not in _NOT_STEPPED
            and pc not in self._breakpoints
            and _has_stepped(tracee)
        )

    def _step_far(self, tracee: Tracee, pc: int, count: int, until: Until) -> tuple[int, RunResult | None]:
        """Execute up to *count* instructions, up to one to look at; return how many, and a result if there is one."""
        flow_at, addresses, breakpoints = self._code(tracee).flow_at, until.addresses, self._breakpoints

        def may_go_on(at: int) -> bool:
            if at in addresses or at in breakpoints or until.is_outside(at):
                return False
            return flow_at(at) not in _NOT_STEPPED

        done, status = self._step_on(tracee, pc, count, may_go_on, self._wait_alone)
        if is_step_trap(tracee, status):
            tracee.drop_signal()
            return done, None
        self._unmasked.discard(tracee.tid)
        return done, result_of_stop(tracee, status, breakpoints)

    def _step(self, tracee: Tracee, pc: int, flow: Flow) -> RunResult | None:
        """Execute one instruction; None if nothing else happened."""
        if self._observe is not None:
            self._observe(tracee, pc)
        if is_in_call(tracee) or (flow is Flow.SYSCALL and not tracee.pending_signal):
            return self._finish_call(tracee)
        with self._breakpoints.lifted(pc):
            self.begin(tracee)
            status = self._group.wait_for(tracee)
        if is_step_trap(tracee, status):
            tracee.drop_signal()
            return None
        self._unmasked.discard(tracee.tid)
        return result_of_stop(tracee, status, self._breakpoints)

    def step_block(self, tracee: Tracee, start: int, last: int) -> RunResult | None:
        """Execute the block that begins at *start*, where the thread is, and whose *last* instruction always jumps.

        None: this processor takes one instruction at a time; the thread is somewhere up to *last*.
        """
        self._unmasked.discard(tracee.tid)
        try:
            with self._breakpoints.lifted(start):
                self.begin(tracee, Resume.BLOCK)
                status = self._group.wait_for(tracee)
            if not is_step_trap(tracee, status):
                return result_of_stop(tracee, status, self._breakpoints)
            tracee.drop_signal()
            pc = tracee.read_registers().pc
            if start < pc <= last:
                return None
            return Reached(pc) if pc in self._breakpoints else CountUsedUp(pc)
        finally:
            with contextlib.suppress(TraceeGoneError):
                self._restore_mask(tracee)

    def begin(self, tracee: Tracee, how: Resume = Resume.STEP) -> None:
        """Let the thread execute one instruction, which is no syscall, or enter the handler of its signal.

        For those who step several threads at once: its next report is to be looked at by `stop_results`.
        """
        if tracee.pending_signal:
            self._restore_mask(tracee)  # it is saved in the handler's frame
        else:
            self._unblock_trap(tracee)
        tracee.resume(how)

    def step_through(self, tracee: Tracee, pc: int, stops: int) -> tuple[int, WaitStatus] | None:
        """Execute instructions of a thread, at *pc*, that are neither calls nor traps, with at most so many *stops*.

        That is one for each instruction, or for each run of blocks (`block_steps`) where the processor can.

        For those who step several threads. Return how many instructions those were, at least, and what it reported at
        last; None if that may take a while: it is at a call or a trap, about to get a signal, or stopped by no step.
        """
        if not _has_stepped(tracee):
            return None
        if self._has_breakpoints:
            self._unblock_trap(tracee)
            try:
                turn = self._blocks(tracee).run(tracee.tid, pc, tracee.layout, stops)
            except TraceeGoneError:
                raise
            except SteppingError:
                self._has_breakpoints = False
                turn = None
            if turn is not None:
                tracee.status = None
                _, status = self._group.note(tracee.tid, turn[1])
                return turn[0], status
            return None
        if self._flow_at(tracee, pc) in _NOT_STEPPED:
            return None
        flow_at = self._code(tracee).flow_at
        return self._step_on(tracee, pc, stops, lambda at: flow_at(at) not in _NOT_STEPPED, self._wait_for)

    def step_observed(
        self, tracee: Tracee, registers: Registers, stops: int, observe: Callable[[int, Registers], None]
    ) -> tuple[int, WaitStatus] | None:
        """As `step_through`, one instruction a stop; *observe* is told the thread and its registers before each.

        registers: those of the thread.
        """
        flow_at, tid = self._code(tracee).flow_at, tracee.tid
        if not _has_stepped(tracee) or flow_at(registers.pc) in _NOT_STEPPED:
            return None
        self._unblock_trap(tracee)
        tracee.status = None
        done = 0
        while True:
            ptrace_api.singlestep(tid)
            raw = self._wait_for(tid)
            if raw != ptrace_api.STEP_STATUS:
                break
            before, registers = registers, tracee.read_registers()
            stays = registers.pc == before.pc
            if stays and not is_processors_trap(tid, tracee.layout.arch):
                break  # sent by somebody, before anything was executed
            observe(tid, before)
            done += 1
            if stays or done == stops or flow_at(registers.pc) in _NOT_STEPPED:
                break
        return done, self._group.note(tid, raw)[1]

    def _step_on(
        self,
        tracee: Tracee,
        pc: int,
        count: int,
        may_go_on: Callable[[int], bool],
        wait_for: Callable[[int], int],
    ) -> tuple[int, WaitStatus]:
        """Execute up to *count* instructions, as `ptrace_api.step_through`; return how many, and the last report."""
        self._unblock_trap(tracee)
        tracee.status = None
        offset = tracee.layout.offset_of(tracee.layout.pc)
        done, raw, _ = ptrace_api.step_through(tracee.tid, pc, offset, may_go_on, count, wait_for)
        _, status = self._group.note(tracee.tid, raw)
        return done, status

    def _wait_for(self, tid: int) -> int:
        """Wait for a thread's report. Others' are taken as well: the first thread's end comes after all of theirs."""
        while True:
            who, raw = ptrace_api.wait_any()
            assert raw is not None
            if who == tid:
                return raw
            self.others.append(self._group.note(who, raw))

    def _wait_alone(self, tid: int) -> int:
        """As `_wait_for`; what others report remains known as their `Tracee.status`."""
        while True:
            who, raw = ptrace_api.wait_any()
            assert raw is not None
            if who == tid:
                return raw
            self._group.note(who, raw)

    def _blocks(self, tracee: Tracee) -> BlockSteps:
        if self._block_steps is None:
            self._block_steps = BlockSteps(self._code(tracee), self._wait_for)
        return self._block_steps

    def begin_call(self, tracee: Tracee) -> None:
        """Let the thread go on with the syscall that it is in or in front of, up to its entry or exit."""
        self._restore_mask(tracee)
        tracee.resume(Resume.SYSCALL)

    def is_at_call(self, tracee: Tracee, pc: int) -> bool:
        """Whether the thread, at *pc*, is in a syscall or in front of one."""
        return is_in_call(tracee) or (self._flow_at(tracee, pc) is Flow.SYSCALL and not tracee.pending_signal)

    def _finish_call(self, tracee: Tracee) -> RunResult | None:
        """Let the thread make the syscall that it is in or in front of, up to its end."""
        with self._breakpoints.lifted(tracee.read_registers().pc):
            while True:
                self.begin_call(tracee)
                status = self._group.wait_for(tracee)
                if status.kind is WaitKind.SYSCALL:
                    if not is_in_call(tracee) and not is_interrupted(tracee.read_registers()):
                        return None
                    continue
                result = result_of_stop(tracee, status, self._breakpoints)
                if result is not None:
                    return result

    def _code(self, tracee: Tracee) -> DecodedCode:
        if self._known_code is None:
            decoder = Decoder(tracee.layout.arch)
            self._known_code = DecodedCode(decoder, lambda pc, size: read_code(self._breakpoints, pc, size))
        return self._known_code

    def _flow_at(self, tracee: Tracee, pc: int) -> Flow:
        return self._code(tracee).flow_at(pc)

    def _unblock_trap(self, tracee: Tracee) -> None:
        if tracee.tid in self._unmasked:
            return
        mask = ptrace_api.getsigmask(tracee.tid)
        if mask & _TRAP_BIT:
            ptrace_api.setsigmask(tracee.tid, mask & ~_TRAP_BIT)
            self._masks[tracee.tid] = mask
        self._unmasked.add(tracee.tid)

    def _restore_mask(self, tracee: Tracee) -> None:
        self._unmasked.discard(tracee.tid)
        mask = self._masks.pop(tracee.tid, None)
        if mask is not None and tracee.is_stopped:
            ptrace_api.setsigmask(tracee.tid, mask)


def _has_stepped(tracee: Tracee) -> bool:
    """Whether the thread is stopped at the end of a step.

    One that has just left a call may make it again: the kernel restarts what a signal for another thread has
    interrupted, without a stop.
    """
    status = tracee.status
    return status is not None and status.kind is WaitKind.SIGNAL_DELIVERY and not tracee.pending_signal


def is_interrupted(registers: Registers) -> bool:
    """Whether the thread is at the end of a call that a signal has interrupted, which is about to be delivered.

    It may be a call that waits with a signal mask of its own (sigsuspend, ppoll). Then the kernel shows the thread's
    own mask, but would put what is set in the place of the other one: the signal would not come.
    """
    pending = registers.layout.pending
    return pending is not None and registers[pending] != _NO_CALL and registers.result in _RESTARTS


def is_in_call(tracee: Tracee) -> bool:
    """Whether the thread is stopped somewhere between the entry to a syscall and its exit-stop."""
    status = tracee.status
    if status is None or status.kind not in (WaitKind.EVENT, WaitKind.SYSCALL):
        return False
    if status.kind is WaitKind.EVENT:
        return status.event in _IN_CALL
    return isinstance(decode_syscall_info(ptrace_api.get_syscall_info(tracee.tid)), SyscallEntry)


def about_to_call(tracee: Tracee) -> AboutToCall:
    """Return what a thread that is in front of a syscall is about to do."""
    registers = tracee.read_registers()
    a0, a1, a2, a3, a4, a5 = (registers[name] for name in registers.layout.args)
    return AboutToCall(registers.pc, registers[registers.layout.sysno], (a0, a1, a2, a3, a4, a5))
