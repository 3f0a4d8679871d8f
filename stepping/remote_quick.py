"""The accesses to remote memory that are made again and again: the shortest way from a trap to the thread's going on.

Known by their addresses are instructions that have trapped before (`remote_access`), are plain (`remote_plans`), and
have nothing but plain ones behind them in their blocks that is executed with them. Their trap is three requests of
ptrace, and one that lets the thread go on. Everything else is left alone.

One thread at a time, on the tracer's thread.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepping import ptrace_api
from stepping.errors import MemoryFaultError
from stepping.maps import PAGE_BYTES
from stepping.registers import AMD64
from stepping.remote_memory import RemoteMap
from stepping.remote_plans import Plan
from stepping.stops import FAULT_CODES
from stepping.tracee import Tracee

_PC = AMD64.index["rip"]
_PAGE_MASK = -PAGE_BYTES


class Known(NamedTuple):
    """What to do where *code* is found: *plans*, one behind the other; none if that is not so plain."""

    code: bytes
    plans: Sequence[Plan]


class QuickAccess:
    """Serves traps of *remote* memory. look_up: returns what is known of the instruction at an address, or None."""

    def __init__(self, remote: RemoteMap, look_up: Callable[[int], Known | None]) -> None:
        self._remote = remote
        self._look_up = look_up
        self._threads = ptrace_api.StoppedThreads(AMD64.codec.size)

    def serve(self, tracee: Tracee, raw: int, tell: Callable[[int], None]) -> bool:
        """Deal with *tracee*, which has reported *raw*, a stop for SIGSEGV; return whether it goes on already.

        tell: see `RemoteAccess.serve`. False: nothing has happened, and the report is not taken in.

        Raises:
            TraceeGoneError: it was killed.
            Whatever the store raises; the report is taken in then, and the thread is in front of the instruction
            whose access was not made.
        """
        tid, threads, remote = tracee.tid, self._threads, self._remote
        code, address = threads.read_fault(tid)
        if address & _PAGE_MASK not in remote.pages or code not in FAULT_CODES:
            return False
        values = threads.read_general(tid)
        pc = values[_PC]
        try:
            known = self._look_up(pc)
            if known is None or not known.plans or remote.memory.read(pc, len(known.code)) != known.code:
                return False
        except MemoryFaultError:
            return False
        complete = False
        try:
            for plan in known.plans:
                tell(values[_PC])
                if not plan.apply(values, remote):
                    break
            complete = True
        finally:
            if not complete:
                tracee.note(raw)
                if values[_PC] != pc:
                    tracee.drop_signal()
                    threads.write_general(tid)
        if values[_PC] == pc:
            return False
        threads.write_general(tid)
        ptrace_api.cont(tid)
        return True
