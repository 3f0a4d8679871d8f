"""Tells where in a Go program a thread makes a call, while it waits for the answer; nothing is stopped for it.

The kernel says where the thread's stack is (/proc/TID/syscall), Go's tables how large each function's frame is. So
the stack is followed without frame pointers, which only a stopped thread would tell. It is followed to its end, or to
where the runtime changed to its system stack. As in a ring's records, it begins in the caller of Syscall6.

Not trusted: the program's memory. Costs some 50 µs a call.
"""

from goabi.errors import GoAbiError
from goabi.sched import GoRuntime
from stepping.errors import MemoryFaultError
from stepping.ring_layout import MAX_FRAMES, STACK
from stepping.tracee_memory import TraceeMemory

_WORD = 8
_READ_BYTES = (4096, 512)
_NO_STACK = b""


class CallStacks:
    """The stacks of calls in the process that *runtime* is of. memory: its."""

    def __init__(self, runtime: GoRuntime, memory: TraceeMemory) -> None:
        self._functions = runtime.binary.functions
        self._uses_lr = runtime.binary.elf.header.arch == "arm64"
        self._bias = runtime.bias
        syscall6 = runtime.binary.syscall6
        self._syscall6 = range(0)
        if syscall6 is not None:
            self._syscall6 = range(syscall6.entry + self._bias, syscall6.end + self._bias)
        self._memory = memory
        #: By address, how far above the stack pointer the return address lies; -1: nothing is above.
        self._depths: dict[int, int] = {}

    def of(self, tid: int, pc: int) -> bytes:
        """Return the addresses for a call made at *pc*, as `RingBatch.stacks` has them; empty if unknown."""
        try:
            with open(f"/proc/{tid}/syscall", "rb") as file:
                sp = int(file.read().split()[-2], 16)
        except (OSError, ValueError, IndexError):
            return _NO_STACK
        if self._uses_lr or sp % _WORD:
            return _NO_STACK
        pcs = [pc]
        base, words = sp, self._read(sp)
        while len(pcs) < MAX_FRAMES:
            depth = self._depths.get(pc)
            if depth is None:
                depth = self._depths[pc] = self._depth(pc)
            if depth < 0:
                break
            at = sp + depth
            if at - base >= len(words):
                base, words = at, self._read(at)
                if not words:
                    break
            pc = int.from_bytes(words[at - base : at - base + _WORD], "little")
            if not pc:
                break
            pcs.append(pc)
            sp = at + _WORD
        if len(pcs) == 1:
            return _NO_STACK  # it is no code of Go's
        if pcs[0] in self._syscall6:
            del pcs[0]
        return STACK.pack(*pcs, *[0] * (MAX_FRAMES - len(pcs)))[: len(pcs) * _WORD]

    def _read(self, address: int) -> bytes:
        for size in _READ_BYTES:
            try:
                return self._memory.read(address, size)
            except MemoryFaultError:
                continue
        return b""

    def _depth(self, pc: int) -> int:
        try:
            function = self._functions.find_function(pc - self._bias)
            if function is None or function.is_top_frame or function.writes_sp:
                return -1
            delta = self._functions.sp_delta(function, pc - self._bias)
        except GoAbiError:
            return -1
        return -1 if delta is None or delta % _WORD else delta
