"""What the debugger and the GDB server control: a program with threads, stopped or running.

A target's methods are called while the program is stopped; only `cont` and `step` let it run, and they return when
it has stopped again. All are called on one thread; `interrupt` may be called by a signal handler of that thread.
"""

from typing import Literal, NamedTuple, Protocol

from stepping.registers import RegisterLayout, Registers
from stepping.watchpoints import Watchpoint

Reason = Literal["breakpoint", "watchpoint", "step", "signal", "syscall", "interrupt", "exec", "exited"]


class Stop(NamedTuple):
    """Why the program has stopped.

    tid: the thread that did; pc: where it is. signo: for ``signal``, which it gets when it goes on. number, args: of
    the call that it is about to make, for ``syscall``. status: as waitpid(2) has it, for ``exited``. watchpoint: the
    one whose memory the instruction before has touched, for ``watchpoint``.
    """

    reason: Reason
    tid: int
    pc: int = 0
    signo: int = 0
    number: int = 0
    args: tuple[int, ...] = ()
    status: int = 0
    watchpoint: Watchpoint | None = None


class Target(Protocol):
    """A program under the debugger. pid: its process; path: its file; layout: its registers."""

    pid: int
    path: str
    layout: RegisterLayout

    @property
    def tids(self) -> list[int]:
        """The threads, the first one first."""

    def read_registers(self, tid: int) -> Registers:
        """Return the general registers of a thread."""

    def write_registers(self, tid: int, registers: Registers) -> None:
        """Replace them."""

    def read_vectors(self, tid: int) -> bytes:
        """Return floating-point and vector registers as the kernel has them.

        amd64: an XSAVE area in standard format, 512 bytes (no AVX) or more; arm64: struct user_fpsimd_state.
        """

    def write_vectors(self, tid: int, data: bytes) -> None:
        """Replace them."""

    def read_memory(self, address: int, size: int) -> bytes:
        """Return memory, without the breakpoints in it.

        Raises:
            stepping.errors.MemoryFaultError: not all of it can be read.
        """

    def write_memory(self, address: int, data: bytes) -> None:
        """Put *data* there, under the breakpoints if there are any.

        Raises:
            stepping.errors.MemoryFaultError: not all of it can be written.
        """

    def read_auxv(self) -> bytes:
        """Return the auxiliary vector that the program was started with."""

    def insert_breakpoint(self, address: int) -> None:
        """Stop threads that come to *address*; again is the same as once.

        Raises:
            stepping.errors.MemoryFaultError: no memory is there.
        """

    def remove_breakpoint(self, address: int) -> None:
        """Do not stop there any more."""

    def insert_watchpoint(self, watchpoint: Watchpoint) -> None:
        """Stop threads behind instructions that touch it; again is the same as once.

        Raises:
            stepping.watchpoints.NoWatchpointError: that cannot be had.
        """

    def remove_watchpoint(self, watchpoint: Watchpoint) -> None:
        """Do not stop for it any more."""

    def stop_at_calls(self, numbers: frozenset[int] | None) -> None:
        """Stop threads that are about to make one of these syscalls; None: at all. An empty set: at none."""

    def step(self, tid: int) -> Stop:
        """Execute one instruction of a thread. The others run only while it is in a syscall."""

    def step_within(self, tid: int, low: int, high: int) -> Stop:
        """Execute instructions of a thread, at least one, while it is in [low, high), and up to the next syscall.

        A stop at the end of that is a ``step``.
        """

    def cont(self) -> Stop:
        """Let all threads run until something happens."""

    def interrupt(self) -> None:
        """Make the `cont` or `step` that is going on return soon."""

    def drop_signal(self, tid: int) -> None:
        """Do not deliver the signal that a thread is stopped for."""

    def detach(self) -> None:
        """Let the program go on by itself."""

    def kill(self) -> None:
        """End the program."""


#: Signals that programs get all the time and that say nothing to a debugger: they are delivered without a stop.
QUIET_SIGNALS = frozenset({13, 14, 17, 18, 20, 21, 22, 23, 26, 27, 28, 29, *range(32, 65)})
