"""Who sleeps on which futex of a spread program. Pure; waiters are woken in the order in which they came.

Only what Go's runtime uses: FUTEX_WAIT and FUTEX_WAKE. A waiter is entered before the word is looked at, and taken
out again if it has changed; so a wake that comes in between is never lost.
"""

from collections import deque

FUTEX_WAIT, FUTEX_WAKE, FUTEX_WAIT_BITSET, FUTEX_WAKE_BITSET = 0, 1, 9, 10
WAKES = FUTEX_WAKE, FUTEX_WAKE_BITSET
FUTEX_BYTES = 4
#: Where nobody but threads of the process can sleep there, so that the kernel needs no page to know where that is.
FUTEX_PRIVATE_FLAG = 128
#: FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME do not matter to who is woken.
COMMAND_MASK = 0x7F


class Futexes:
    """Queues of thread ids by address."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[int]] = {}
        self._addresses: dict[int, int] = {}

    def enter(self, tid: int, address: int) -> None:
        """Let *tid* sleep at *address*."""
        self._queues.setdefault(address, deque()).append(tid)
        self._addresses[tid] = address

    def leave(self, tid: int) -> bool:
        """Take *tid* out; return whether it slept."""
        address = self._addresses.pop(tid, None)
        if address is None:
            return False
        queue = self._queues[address]
        queue.remove(tid)
        if not queue:
            del self._queues[address]
        return True

    def sleeps(self, tid: int) -> bool:
        """Whether *tid* sleeps."""
        return tid in self._addresses

    def wake(self, address: int, count: int) -> list[int]:
        """Take out up to *count* sleepers of *address* and return them, first come first."""
        queue = self._queues.get(address)
        woken: list[int] = []
        while queue and len(woken) < count:
            woken.append(queue[0])
            self.leave(queue[0])
        return woken
