"""Hardware watchpoints: the processor stops a thread that has touched an address (debug registers, amd64).

There are four of them, of 1, 2, 4 or 8 aligned bytes each, and each thread has its own: a new thread gets them by
`apply`. A thread that has touched one reports a SIGTRAP behind the instruction; `take_hit` recognises it. What the
kernel touches in a syscall is not seen. They must be gone before a thread is detached: it would die of the signal.

All methods are called on the tracer's thread, with the tracees that they touch stopped.
Source: Intel SDM volume 3, "Debug Registers"; ptrace(2); arch/x86/kernel/ptrace.c.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from stepping import ptrace_api
from stepping.errors import SteppingError, TraceeGoneError
from stepping.tracee import Tracee

_SLOTS = 4
_STATUS, _CONTROL = 6, 7
_LENGTHS = {1: 0, 2: 1, 8: 2, 4: 3}
_WRITES, _TOUCHES = 1, 3
_HITS = (1 << _SLOTS) - 1


class NoWatchpointError(SteppingError):
    """A watchpoint cannot be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Watchpoint:
    """*size* bytes at *address*; reads: also stop at reads of them."""

    address: int
    size: int
    reads: bool = False


class Watchpoints:
    """The watchpoints of one process."""

    def __init__(self) -> None:
        self._slots: list[tuple[int, int, Watchpoint] | None] = [None] * _SLOTS

    def __bool__(self) -> bool:
        return any(self._slots)

    def insert(self, one: Watchpoint, tracees: Iterable[Tracee]) -> None:
        """Watch *one* in *tracees*, all threads of the process; again is the same as once.

        Raises:
            NoWatchpointError: there are not so many, or the kernel refuses the address. Nothing is changed then.
        """
        if one in self._watched():
            return
        if not 0 < one.size <= 8 * _SLOTS:
            raise NoWatchpointError(f"{one.size} bytes cannot be watched; at most {8 * _SLOTS} can")
        pieces = list(_aligned_pieces(one.address, one.size))
        free = [index for index, slot in enumerate(self._slots) if slot is None]
        if len(pieces) > len(free):
            raise NoWatchpointError(
                f"{one.size} bytes at {one.address:#x} take {len(pieces)} of the processor's {_SLOTS} watchpoints, "
                f"of which {len(free)} are free"
            )
        before = list(self._slots)
        for index, (address, size) in zip(free, pieces, strict=False):
            self._slots[index] = address, size, one
        threads = list(tracees)
        try:
            for tracee in threads:
                self.apply(tracee)
        except TraceeGoneError:
            pass  # its other threads have, or will have, it
        except SteppingError as error:
            self._slots = before
            for tracee in threads:
                self.apply(tracee)
            raise NoWatchpointError(f"{one.address:#x} cannot be watched: {error}") from error

    def remove(self, one: Watchpoint, tracees: Iterable[Tracee]) -> None:
        """Do not watch *one* any more."""
        self._slots = [None if slot is not None and slot[2] == one else slot for slot in self._slots]
        self._apply_to_all(tracees)

    def remove_all(self, tracees: Iterable[Tracee]) -> None:
        """Watch nothing any more."""
        if self:
            self.forget_all()
            self._apply_to_all(tracees)

    def forget_all(self) -> None:
        """Forget about all: an exec has removed them."""
        self._slots = [None] * _SLOTS

    def apply(self, tracee: Tracee) -> None:
        """Give a thread, which may be new, the watchpoints that there are."""
        ptrace_api.write_debug_register(tracee.tid, _CONTROL, 0)
        control = 0
        for index, slot in enumerate(self._slots):
            if slot is not None:
                address, size, one = slot
                ptrace_api.write_debug_register(tracee.tid, index, address)
                kind = _TOUCHES if one.reads else _WRITES
                control |= 1 << 2 * index | (kind | _LENGTHS[size] << 2) << 16 + 4 * index
        ptrace_api.write_debug_register(tracee.tid, _CONTROL, control)

    def take_hit(self, tracee: Tracee) -> Watchpoint | None:
        """Return the watchpoint that a thread has touched since it was asked last, None if none."""
        if not self:
            return None
        status = ptrace_api.read_debug_register(tracee.tid, _STATUS)
        if not status & _HITS:
            return None
        ptrace_api.write_debug_register(tracee.tid, _STATUS, 0)
        for index, slot in enumerate(self._slots):
            if slot is not None and status >> index & 1:
                return slot[2]
        return None

    def _watched(self) -> set[Watchpoint]:
        return {slot[2] for slot in self._slots if slot is not None}

    def _apply_to_all(self, tracees: Iterable[Tracee]) -> None:
        for tracee in tracees:
            with contextlib.suppress(TraceeGoneError):
                self.apply(tracee)


def _aligned_pieces(address: int, size: int) -> Iterable[tuple[int, int]]:
    """Cut a range into pieces that a debug register can hold."""
    end = address + size
    while address < end:
        piece = next(one for one in (8, 4, 2, 1) if address % one == 0 and address + one <= end)
        yield address, piece
        address += piece
