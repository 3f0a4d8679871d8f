"""futex(2) for threads of one emulated program: waiting on a word of its memory, waking, moving waiters.

Words in memory that is shared with other processes are treated like all others: only this program's own threads
wake each other.

Source: futex(2), include/uapi/linux/futex.h.
"""

import collections
import errno
import struct

from stepping.emulation.address_space import PROT_READ, AddressSpace
from stepping.emulation.threads import Result, Scheduler, Thread, Wait

FUTEX_WAIT, FUTEX_WAKE, FUTEX_REQUEUE, FUTEX_CMP_REQUEUE = 0, 1, 3, 4
FUTEX_WAIT_BITSET, FUTEX_WAKE_BITSET = 9, 10
_ANY = 0xFFFFFFFF
#: After which time a thread that waits on a word that is elsewhere looks again.
_LOOKS_AGAIN_NS = 1_000_000

_U32 = struct.Struct("<I")


class Futexes:
    """All threads that wait on words of memory, by address, first come first."""

    def __init__(self, space: AddressSpace, scheduler: Scheduler) -> None:
        self._space = space
        self._scheduler = scheduler
        self._waiting: dict[int, collections.deque[tuple[Thread, Wait, int]]] = {}

    def wait(
        self, thread: Thread, address: int, expected: int, deadline: int | None, bits: int = _ANY
    ) -> Result:
        """Let *thread* wait if the word at *address* is *expected*."""
        if address % 4 or not bits:
            return -errno.EINVAL
        if not self._space.allows(address, 4, PROT_READ):
            return -errno.EFAULT
        elsewhere = self._space.elsewhere
        if elsewhere is not None and elsewhere.touches(address, 4):
            return self._wait_elsewhere(thread, elsewhere.read(address, 4), expected)
        if _U32.unpack_from(self._space.view, address)[0] != expected & _ANY:
            return -errno.EAGAIN
        wait = Wait(restarts=deadline is None)
        wait.cancel = lambda: self._forget(address, wait)
        self._waiting.setdefault(address, collections.deque()).append((thread, wait, bits))
        return self._scheduler.block(thread, wait, deadline)

    def _wait_elsewhere(self, thread: Thread, word: bytes, expected: int) -> Result:
        """Return as if woken in a moment: whoever changes a *word* that other programs have wakes nobody here."""
        if _U32.unpack(word)[0] != expected & _ANY:
            return -errno.EAGAIN
        deadline = self._scheduler.now() + _LOOKS_AGAIN_NS
        return self._scheduler.block(thread, Wait(timeout_result=0), deadline)

    def wake(self, address: int, count: int, bits: int = _ANY) -> int:
        """Wake at most *count* of those who wait on *address*; return how many."""
        waiting = self._waiting.get(address)
        woken = 0
        if waiting is not None:
            for thread, _, mask in list(waiting):
                if woken >= count:
                    break
                if mask & bits:
                    self._scheduler.wake(thread, 0)
                    woken += 1
        return woken

    def requeue(self, address: int, wake: int, target: int, move: int) -> int:
        """Wake *wake* of those who wait on *address*, let *move* others wait on *target*; return how many woke."""
        woken = self.wake(address, wake)
        for entry in list(self._waiting.get(address, ()))[: max(move, 0)]:
            thread, wait, bits = entry
            self._forget(address, wait)
            wait.cancel = lambda wait=wait: self._forget(target, wait)
            self._waiting.setdefault(target, collections.deque()).append((thread, wait, bits))
        return woken

    def _forget(self, address: int, wait: Wait) -> None:
        waiting = self._waiting.get(address)
        if waiting is not None:
            rest = collections.deque(entry for entry in waiting if entry[1] is not wait)
            if rest:
                self._waiting[address] = rest
            else:
                del self._waiting[address]
