"""Makes a thread that waits in a fork carry it out as somebody else wants it, and see another result.

The thread waits for the listener. It is seized just for this: the wait is interrupted, the call is made anew with
changed arguments, and its result is replaced before the thread sees it. The new process becomes a sibling of its
maker instead of a child (CLONE_PARENT): whoever launched the program is told of its end, and the maker, whose
children are elsewhere, is not. Before its first instruction it is bound to die with its new parent.

    thread  stopping -> entering -> making -> leaving -> DONE     (vfork: leaving lasts until the child is gone)
    child   born -> binding -> free

A signal may be faster than we are; then the thread goes on to its handler, and the call is INTERRUPTED: it will come
again, or not, as after any interruption.

Thread rules: one thread, the one that launched the program. The seized threads' calls come to the listener again: its
user lets those of `tids` go on.

Source: ptrace(2), clone(2); kernel/fork.c, kernel/signal.c.
"""

import os
import signal
from collections.abc import Mapping
from enum import Enum

from stepping import ptrace_api
from stepping.clone3 import decode_clone3
from stepping.clone_flags import (
    CLONE_NAMESPACES,
    CLONE_PARENT,
    CLONE_PARENT_SETTID,
    CLONE_PIDFD,
    CLONE_VFORK,
    CLONE_VM,
)
from stepping.errors import TraceeGoneError
from stepping.ptrace_api import Option
from stepping.registers import Registers
from stepping.syscalls import Arch
from stepping.syscalls.marshal import Args
from stepping.syscalls.table import SYSCALLS
from stepping.tracee import Resume, Tracee
from stepping.wait_status import WAIT_ALL, Event, WaitKind, WaitStatus

#: The affair of who makes the child's other half, or of whoever gives it its id.
_OF_OTHERS = CLONE_PIDFD | CLONE_PARENT_SETTID | CLONE_NAMESPACES
_PR_SET_PDEATHSIG = 1
_ALL_SIGNALS = (1 << 64) - 1
_OPTIONS = Option.SYSGOOD | Option.FORK | Option.VFORK | Option.CLONE | Option.EXITKILL
_BIRTHS = frozenset({Event.FORK, Event.VFORK, Event.CLONE})
#: The result of a call that the kernel is about to restart, as it stands in a register of x86.
ERESTARTSYS = -512


class Outcome(Enum):
    """What has become of the fork so far. FAILED: `errno` says why. GONE: the thread died."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    GONE = "gone"


def clone_arguments(name: str, args: Args, ins: Mapping[int, bytes], arch: Arch) -> Args:
    """Return the arguments of the clone(2) that does what call *name* (fork, vfork, clone, clone3) does.

    ins: what it reads, by argument. What only clone3 has is left out. Raises: BadArgumentError.
    """
    if name == "clone3":
        return decode_clone3(ins[0]).as_clone(arch)
    if name == "fork":
        return (signal.SIGCHLD, 0, 0, 0, 0, 0)
    if name == "vfork":
        return (CLONE_VM | CLONE_VFORK | signal.SIGCHLD, 0, 0, 0, 0, 0)
    return args


class ForkCall:
    """One fork.

    outcome, errno; child: the new process's id here, 0 before it exists; child_is_free: it runs.
    """

    def __init__(self, pid: int, tid: int, ip: int, args: Args, result: int) -> None:
        """Seize thread *tid* of process *pid*, which waits in a fork.

        ip: the address after its syscall; args: as of `clone_arguments`; result: what the thread is to see.

        Raises:
            PtraceRefusedError: the kernel does not allow it.
            TraceeGoneError: it is dead.
        """
        self.outcome = Outcome.PENDING
        self.errno = 0
        self.child = 0
        self.child_is_free = False
        self._args = (args[0] & ~_OF_OTHERS | CLONE_PARENT, *args[1:])
        self._result = result
        self._ip = ip
        self._thread = Tracee.seize(tid, pid, _OPTIONS)
        self._step = self._stopping
        self._saved: Registers | None = None
        self._newborn: Tracee | None = None
        self._child_step = self._born
        self._child_saved: Registers | None = None
        self._child_mask = 0
        self._thread.interrupt()

    @property
    def tids(self) -> tuple[int, ...]:
        """The threads here that are still seized."""
        thread = (self._thread.tid,) if self.outcome is Outcome.PENDING else ()
        return thread if self.child_is_free or not self.child else (*thread, self.child)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done."""
        return self.outcome is not Outcome.PENDING and (not self.child or self.child_is_free)

    @property
    def has_returned(self) -> bool:
        """Whether the thread's call is done, not given up for a signal."""
        return self.outcome not in (Outcome.PENDING, Outcome.INTERRUPTED)

    def advance(self) -> None:
        """Take the reports that have come, and go on as far as possible without waiting."""
        while self.outcome is Outcome.PENDING and (status := next_stop(self._thread)) is not None:
            try:
                if not status.is_stop:
                    raise TraceeGoneError(self._thread.tid)
                self._step(status)
            except TraceeGoneError:
                self.outcome = Outcome.GONE
        newborn = self._newborn
        while newborn is not None and not self.child_is_free and (status := next_stop(newborn)) is not None:
            try:
                self._child_step(newborn, status)
            except TraceeGoneError:
                self.child_is_free = True

    def forget(self, pid: int) -> None:
        """Take notice that process *pid* is gone."""
        if pid == self._thread.pid and self.outcome is Outcome.PENDING:
            self.outcome = Outcome.GONE
        if pid == self.child:
            self.child_is_free = True

    # The thread.

    def _stopping(self, status: WaitStatus) -> None:
        thread = self._thread
        if status.event is not Event.STOP:
            self._give_up()
            return
        registers = thread.read_registers()
        layout = thread.layout
        restarts = registers.pc == self._ip - len(
            layout.syscall_instruction
        )  # arm64 turns the clock back itself
        if not restarts and not (registers.pc == self._ip and registers.result == ERESTARTSYS):
            self._give_up()
            return
        self._saved = registers.copy()
        instruction = self._ip - len(layout.syscall_instruction)
        registers.prepare_syscall(instruction, SYSCALLS["clone"].numbers[layout.arch], self._args)
        thread.write_registers(registers)
        self._step = self._entering
        thread.resume(Resume.SYSCALL)

    def _entering(self, status: WaitStatus) -> None:
        if status.kind is WaitKind.SYSCALL:
            self._step = self._making
            self._thread.resume(Resume.SYSCALL)
        elif status.event is Event.STOP:
            self._thread.resume(Resume.SYSCALL)
        else:
            self._undo()

    def _making(self, status: WaitStatus) -> None:
        thread = self._thread
        if status.event in _BIRTHS:
            self.child = ptrace_api.geteventmsg(thread.tid)
            self._newborn = Tracee(self.child, self.child, thread.layout)
            self._step = self._leaving
            thread.resume(Resume.SYSCALL)
        elif status.kind is WaitKind.SYSCALL:
            result = thread.read_registers().result
            if result == ERESTARTSYS:
                self._undo()
            else:
                self.errno = -result
                self._return(result)
                self.outcome = Outcome.FAILED
        else:
            thread.resume(Resume.SYSCALL)

    def _leaving(self, status: WaitStatus) -> None:
        if status.kind is WaitKind.SYSCALL:
            self._return(self._result)
            self.outcome = Outcome.DONE
        else:
            self._thread.resume(Resume.SYSCALL)

    def _return(self, result: int) -> None:
        """Let the thread return from its call with *result*, unseized."""
        assert self._saved is not None
        registers = self._saved.copy()
        layout = registers.layout
        registers.pc = self._ip
        registers[layout.result] = result
        if layout.pending is not None:
            registers[layout.pending] = _ALL_SIGNALS
        self._thread.write_registers(registers)
        self._thread.detach()

    def _undo(self) -> None:
        assert self._saved is not None
        self._thread.write_registers(self._saved)
        self._give_up()

    def _give_up(self) -> None:
        self.outcome = Outcome.INTERRUPTED
        self._thread.detach()

    # The new process.

    def _born(self, newborn: Tracee, status: WaitStatus) -> None:
        if status.event is not Event.STOP:
            newborn.resume()
            return
        assert self._saved is not None
        registers = newborn.read_registers()
        layout = registers.layout
        for name in layout.args:
            registers[name] = self._saved[name]
        registers[layout.result] = 0
        self._child_saved = registers.copy()
        self._child_mask = ptrace_api.getsigmask(newborn.tid)
        ptrace_api.setsigmask(newborn.tid, _ALL_SIGNALS)
        instruction = self._ip - len(layout.syscall_instruction)
        number = SYSCALLS["prctl"].numbers[layout.arch]
        registers.prepare_syscall(instruction, number, (_PR_SET_PDEATHSIG, signal.SIGKILL))
        newborn.write_registers(registers)
        self._child_step = self._binding
        newborn.resume(Resume.SYSCALL)

    def _binding(self, newborn: Tracee, status: WaitStatus) -> None:
        if status.kind is WaitKind.SYSCALL:
            self._child_step = self._bound
        newborn.resume(Resume.SYSCALL)

    def _bound(self, newborn: Tracee, status: WaitStatus) -> None:
        if status.kind is not WaitKind.SYSCALL:
            newborn.resume(Resume.SYSCALL)
            return
        assert self._child_saved is not None
        newborn.write_registers(self._child_saved)
        ptrace_api.setsigmask(newborn.tid, self._child_mask)
        newborn.detach()
        self.child_is_free = True


def next_stop(tracee: Tracee) -> WaitStatus | None:
    """Return the next report of *tracee*, None if there is none now; never the end of a process."""
    if tracee.tid != tracee.pid:
        try:
            return tracee.wait(block=False)
        except TraceeGoneError:
            return None
    try:
        found = os.waitid(os.P_PID, tracee.tid, os.WSTOPPED | os.WNOHANG | WAIT_ALL)
    except ChildProcessError:
        return None
    return None if found is None else tracee.note(found.si_status << 8 | 0x7F)
