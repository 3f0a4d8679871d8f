"""What executes code: the protocol that all executors keep, what they are asked for, and every way it can end.

An executor runs one thread of a program: natively (`native`), instruction by instruction (`singlestep`), or on an
emulated processor over the thread's memory. Whoever calls it has a stopped tracee and gets it back stopped, with a
value that says why. Nothing that a program can do is an exception: `TraceeGoneError`
aside, which a SIGKILL from anywhere can cause at any time.

What all executors have in common:

- The thread's registers and memory, as ptrace and /proc/PID/mem show them, are its state before and after.
- At least one instruction is executed before the conditions of `Until` are looked at, so a run that begins at one of
  its addresses does not end there at once. It ends before the instruction at the address where it stops.
- A thread that is stopped for a signal gets it when it is run again, unless the executor caused it itself (a
  breakpoint, a step). A signal that arrives ends the run before it is delivered, so its receiver can be asked.
- Only the given thread runs. One that waits for another (a futex) waits as long as the others do not run.
- Breakpoints that are in memory are not seen by the program, and end a run.

Executors are used on the tracer's thread.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal, Protocol

from stepping.tracee import Tracee
from stepping.wait_status import WaitStatus

Access = Literal["read", "write", "execute"]


@dataclass(frozen=True, slots=True)
class Until:
    """When a run ends, if nothing ends it before; the first that applies.

    addresses: the program counter is at one of these. within: a half-open range [start, end); the program counter
    is outside of it. instructions: so many were executed. blocks: so many blocks were executed to their ends; a
    block ends with an instruction that may go elsewhere than to the next one (a jump, taken or not, a call, a
    return, a syscall). syscalls: a syscall is about to be made; otherwise syscalls are made, by executors that can.
    """

    addresses: AbstractSet[int] = field(default_factory=frozenset)
    within: tuple[int, int] | None = None
    instructions: int | None = None
    blocks: int | None = None
    syscalls: bool = False

    @property
    def is_counted(self) -> bool:
        """Whether instructions or blocks are to be counted."""
        return self.instructions is not None or self.blocks is not None

    def is_outside(self, pc: int) -> bool:
        """Whether *pc* is outside of the range to stay in."""
        return self.within is not None and not self.within[0] <= pc < self.within[1]


@dataclass(frozen=True, slots=True)
class Reached:
    """The thread is at *pc*: one of the addresses asked for, or a breakpoint that somebody has set."""

    pc: int


@dataclass(frozen=True, slots=True)
class LeftRange:
    """The thread is at *pc*, outside of the range that it was to stay in."""

    pc: int


@dataclass(frozen=True, slots=True)
class CountUsedUp:
    """As many instructions or blocks as were asked for were executed; the thread is at *pc*."""

    pc: int


@dataclass(frozen=True, slots=True)
class AboutToCall:
    """The thread is about to make syscall *number* with *args*, by the instruction at *pc*.

    The next run makes the call. The thread may be in front of the instruction or, if the kernel stopped it, in its
    syscall-entry-stop already, so its registers are to be changed only by who knows which (`Tracee.status`).
    """

    pc: int
    number: int
    args: tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class MemoryFault:
    """The instruction at *pc* may not touch *address*; nothing of it has happened.

    access: how, or None where the processor does not tell. address: 0 if the kernel does not tell (on amd64, of
    addresses that no pointer can have). signo: the signal that the thread gets when it is run again, 0 if none.
    """

    pc: int
    address: int
    access: Access | None
    signo: int = 0


@dataclass(frozen=True, slots=True)
class CannotExecute:
    """The instruction at *pc*, whose first bytes are *code*, is none that this executor can execute.

    reason: why, for people. signo: the signal that the thread gets when it is run again, 0 if none.
    """

    pc: int
    code: bytes
    reason: str
    signo: int = 0


@dataclass(frozen=True, slots=True)
class Signalled:
    """Signal *signo* is about to be delivered to the thread, at *pc*. The next run delivers it."""

    pc: int
    signo: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Somebody asked the thread to stop (`Tracee.interrupt`), or, with *signo*, its process was stopped by that."""

    pc: int
    signo: int = 0


@dataclass(frozen=True, slots=True)
class NewTask:
    """The thread has created thread or process *tid*, which is traced too if the tracee's options say so."""

    pc: int
    tid: int


@dataclass(frozen=True, slots=True)
class Execed:
    """The process now executes another program; the thread, its only one, is at *pc*. former_tid: what it was."""

    pc: int
    former_tid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The thread is gone. status: how it ended; that of the process if it was its first thread."""

    status: WaitStatus


RunResult = (
    Reached
    | LeftRange
    | CountUsedUp
    | AboutToCall
    | MemoryFault
    | CannotExecute
    | Signalled
    | Interrupted
    | NewTask
    | Execed
    | Exited
)


class Executor(Protocol):
    """Runs a thread until something happens."""

    def run(self, tracee: Tracee, until: Until) -> RunResult:
        """Run the stopped *tracee*, and nobody else, and return why it stopped; see the module's text.

        Raises:
            TraceeGoneError: the tracee was killed while it was stopped.
        """
        ...
