"""Stops a thread where it leaves a piece of code, by its debug registers: nobody else meets these breakpoints.

Source: ptrace(2) (PTRACE_POKEUSER); Intel SDM volume 3, "Debug, Branch Profile..." (DR0 to DR3, DR7; RF);
arch/x86/kernel/hw_breakpoint.c.
"""

import contextlib
from collections.abc import Callable, Collection
from typing import Self

from stepping import ptrace_api
from stepping.errors import TraceeGoneError

#: Debug registers 0 to 3 of amd64, and what enables them in register 7, for instructions.
BREAKPOINTS_OF_A_THREAD = 4
_ALL_ENABLED = 0b01010101


class ExitBreakpoints:
    """Breakpoints of the amd64 processor for *tid*, which is stopped: gone at the end of the `with`.

    armed: their addresses; once there are any, four. stepped: whether the thread last went on for one instruction.
    pc_offset: where the program counter is in struct user. wait_for: as of `ptrace_api.step_through`.

    Raises:
        SteppingError: there are none to be had.
        TraceeGoneError: the thread is dead.
    """

    def __init__(self, tid: int, pc_offset: int, wait_for: Callable[[int], int]) -> None:
        self._tid = tid
        self._pc_offset = pc_offset
        self._wait_for = wait_for
        self._next = 0
        #: Where the thread has just met a breakpoint: the next time that it goes on, it does not stop there at once.
        self._met = 0
        self.armed: list[int] = []
        self.stepped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        if self.armed:
            with contextlib.suppress(TraceeGoneError):
                ptrace_api.write_debug_register(self._tid, 7, 0)

    def go_on(self, exits: Collection[int], pc: int) -> tuple[int, int]:
        """Let the thread, at *pc*, run up to one of at most four *exits*, or for one instruction without any.

        It may also stop at another of `armed`, or after one instruction. Return its raw wait status, and where it is
        if that is `ptrace_api.STEP_STATUS`.
        """
        tid = self._tid
        if exits:
            self._arm(exits)
        self.stepped = not exits or (pc in self.armed and pc != self._met)
        if self.stepped:
            ptrace_api.singlestep(tid)
        else:
            ptrace_api.cont(tid)
        status = self._wait_for(tid)
        if status != ptrace_api.STEP_STATUS:
            return status, -1
        reached = ptrace_api.peek_user(tid, self._pc_offset)
        self._met = 0 if self.stepped else reached
        return status, reached

    def _arm(self, exits: Collection[int]) -> None:
        """Have breakpoints at all *exits*; others that were there stay as long as no room is needed."""
        armed = self.armed
        if not armed:
            self.armed = (list(exits) * BREAKPOINTS_OF_A_THREAD)[:BREAKPOINTS_OF_A_THREAD]
            for number, address in enumerate(self.armed):
                ptrace_api.write_debug_register(self._tid, number, address)
            ptrace_api.write_debug_register(self._tid, 7, _ALL_ENABLED)
            return
        for address in exits:
            if address not in armed:
                number = self._next
                while armed[number] in exits and armed.count(armed[number]) == 1:
                    number = (number + 1) % BREAKPOINTS_OF_A_THREAD
                ptrace_api.write_debug_register(self._tid, number, address)
                armed[number] = address
                self._next = (number + 1) % BREAKPOINTS_OF_A_THREAD
