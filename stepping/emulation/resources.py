"""What a `Machine` asks of those around it: for what lies outside the program, and to be watched."""

from typing import TYPE_CHECKING, Protocol

from stepping.emulation.threads import Result, Thread
from stepping.syscalls import Syscall

if TYPE_CHECKING:
    from stepping.emulation.machine import Machine


class Resources(Protocol):
    """Whoever provides what lies outside the program. claimed: the calls that go there whatever they are about."""

    @property
    def claimed(self) -> frozenset[str]:
        """See above."""

    def call(self, machine: "Machine", thread: Thread, row: Syscall, args: list[int]) -> Result:
        """Make the call *row* with the registers *args* for *thread*, or let it wait (`machine.scheduler`)."""

    def unknown(self, machine: "Machine", thread: Thread, number: int, args: list[int]) -> Result:
        """Make the call *number*, which no table knows: ENOSYS, or what it means here."""

    def fork(self, machine: "Machine", thread: Thread, args: list[int]) -> Result:
        """Make the clone(2) of a process that *thread* asks for; return in both."""

    def make_at_once(self, machine: "Machine", thread: Thread, name: str, args: list[int]) -> Result:
        """Make the call *name* of *thread*, which does not wait: about other processes, or itself as they see it."""

    def map_file(self, fd: int, offset: int, address: int, size: int, shared: bool) -> tuple[int, int]:
        """Put a part of a file at *address* of this process; return as a `address_space.FileMapper`."""


class Observer(Protocol):
    """Whoever wants to see every call and signal of the program. Times are those of the program's clock, ns."""

    def start(self, machine: "Machine") -> None:
        """The program is loaded and about to run; breakpoints can be set (`Emulator.watch`)."""

    def begins(self, machine: "Machine", thread: Thread, row: Syscall, args: list[int], began: int) -> None:
        """*thread* is about to make a call; the processor is in it, and its `context` is not saved."""

    def called(self, machine: "Machine", tid: int, result: int | None, ended: int) -> None:
        """The call of thread *tid* returned *result* (None: it does not return)."""

    def signalled(self, machine: "Machine", tid: int, number: int, info: bytes) -> None:
        """A fault of thread *tid* raised signal *number*."""

    def flush(self) -> None:
        """Nothing happens for a while, or another program is about to take this one's place."""

    def ended(self, machine: "Machine", status: int) -> None:
        """The program is gone, with a wait status; not of children."""
