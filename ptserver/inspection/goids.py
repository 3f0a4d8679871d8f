"""Tells which goroutine a thread of a Go program runs, from the runtime's own records.

A thread that waits for the answer to its call does not change its M's current goroutine meanwhile, so what is read
then is exact. Costs two small reads for a thread that was seen before; the first call of a thread walks the list of
Ms. Unknown is 0: the runtime's own calls, threads of C code, and anything that makes no sense.
"""

import struct
from typing import Self

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from goabi.goroutine import M
from goabi.sched import GoRuntime
from ptserver.inspection.proc_status import inner_number
from ptserver.inspection.process_memory import ProcessMemory, read_load_bias
from stepping.errors import MemoryFaultError as TraceeFaultError
from stepping.errors import TraceeGoneError
from stepping.tracee_memory import TraceeMemory

_U64 = struct.Struct("<Q")


class GoroutineIds:
    """Goroutine numbers of the threads of one process. runtime: the program's, as it runs."""

    def __init__(self, binary: GoBinary, pid: int, memory: TraceeMemory) -> None:
        self.runtime = GoRuntime(binary, ProcessMemory(memory), read_load_bias(binary, pid))
        self._pid = pid
        self._memory = memory
        self._curg = self.runtime.layouts["m"].offset("curg")
        self._goid = self.runtime.layouts["g"].offset("goid")
        self._procid = self.runtime.layouts["m"].offset("procid")
        self._ms: dict[
            int, tuple[int, int]
        ] = {}  # by tid, addresses of M records and the number that they hold

    @classmethod
    def find(cls, path: str, pid: int, memory: TraceeMemory) -> Self | None:
        """Return the numbers for process *pid* that executes *path*; None if it is not a Go program we know."""
        try:
            return cls(GoBinary.open(path, prefer_table=True), pid, memory)
        except (GoAbiError, OSError, TraceeGoneError):
            return None

    def of(self, tid: int) -> int:
        """Return the number of the goroutine that thread *tid* runs, 0 if it runs none."""
        try:
            m, number = self._ms.get(tid, (0, 0))
            if not m or self._word(m + self._procid) != number:
                number = inner_number(tid)
                found = self.runtime.find_m(number) or self._first_m(tid)
                if found is None:
                    return 0
                m = found.addr
                self._ms[tid] = m, found.procid
            g = self._word(m + self._curg)
            return self._word(g + self._goid) if g else 0
        except (GoAbiError, TraceeFaultError):
            return 0

    def _first_m(self, tid: int) -> M | None:
        """Return the first thread's M, if *tid* is that: a server may have told it that it is another process."""
        if tid != self._pid:
            return None
        return next((m for m in self.runtime.iter_ms() if m.id == 0), None)

    def _word(self, address: int) -> int:
        return int(_U64.unpack(self._memory.read(address, 8))[0])
