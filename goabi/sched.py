"""The running program's scheduler: all goroutines, Ms and Ps, and what can be said about each.

`GoRuntime` joins a `GoBinary` with memory and a load bias. The memory should not change while a listing is
made (stop the program, or use a core); if it does, records that make no sense are left out and counted, never
made up. Not locked: use from one thread.
"""

from collections.abc import Iterator

from goabi.binary import GoBinary
from goabi.errors import LayoutError, MemoryFaultError, RuntimeDataError
from goabi.goroutine import Decoder, Goroutine, GoStatus, M, P
from goabi.labels import read_labels
from goabi.layouts import Layouts
from goabi.memory import MemoryReader, read_scattered, read_u64, read_words
from goabi.pclntab import SourceFrame

_CHUNK = 8192
_MAX_GOROUTINES = 1 << 28
_MAX_MS = 1 << 16
_MAX_PS = 1 << 16
_MAX_SUDOGS = 4096
# Go's own goroutines start in its runtime, but for these. Source: isSystemGoroutine, runtime/traceback.go.
_USER_ENTRIES = frozenset({"runtime.main", "runtime.corostart", "runtime.handleAsyncEvent"})


class GoRuntime:
    """A Go program in memory. `bias` is what was added to link-time addresses (0 unless position-independent).

    `skipped` counts the records left out by the last listing, for they made no sense.
    """

    def __init__(self, binary: GoBinary, memory: MemoryReader, bias: int = 0) -> None:
        self.binary = binary
        self.memory = memory
        self.bias = bias
        self.layouts: Layouts = binary.layouts
        self.decoder = Decoder(self.layouts)
        self.skipped = 0
        self._allm_addr: int | None = None
        self._allp_addr: int | None = None

    # -- goroutines -------------------------------------------------------------------------------------------

    def goroutine_slots(self) -> int:
        """How many goroutine records there are, dead ones (kept for reuse) included."""
        return self._allgs()[1]

    def _allgs(self) -> tuple[int, int]:
        pointer, length, capacity = read_words(self.memory, self.binary.allgs_addr + self.bias, 3)
        if length > capacity or capacity > _MAX_GOROUTINES:
            raise RuntimeDataError(f"the list of goroutines says length {length}, capacity {capacity}")
        return pointer, length

    def iter_goroutines(self, *, dead: bool = False) -> Iterator[Goroutine]:
        """All goroutines in order of creation of their records; without the dead ones unless asked for.

        Memory use does not depend on their number. Raises: `MemoryFaultError` or `RuntimeDataError` when the
        list itself cannot be read.
        """
        pointer, length = self._allgs()
        self.skipped = 0
        size, decode = self.decoder.g_bytes, self.decoder.decode_g
        for start in range(0, length, _CHUNK):
            addrs = read_words(self.memory, pointer + 8 * start, min(_CHUNK, length - start))
            for addr, raw in zip(addrs, read_scattered(self.memory, addrs, size), strict=True):
                if raw is None:
                    self.skipped += 1
                    continue
                try:
                    goroutine = decode(addr, raw)
                except RuntimeDataError:
                    self.skipped += 1
                    continue
                if dead or not goroutine.is_dead:
                    yield goroutine

    def read_goroutine(self, addr: int) -> Goroutine:
        """The goroutine whose record is at `addr`. Raises: `MemoryFaultError`, `RuntimeDataError`."""
        return self.decoder.decode_g(addr, self.memory.read(addr, self.decoder.g_bytes))

    def find_goroutine(self, goid: int) -> Goroutine | None:
        """The live goroutine of that id."""
        return next((g for g in self.iter_goroutines() if g.goid == goid), None)

    def wait_reason(self, goroutine: Goroutine) -> str:
        """Why it waits, in Go's own words; "" when it does not, "unknown wait reason" as Go says it."""
        if goroutine.status is not GoStatus.WAITING:
            return ""
        reasons = self.layouts.wait_reasons
        index = goroutine.wait_reason_index
        return reasons[index] if index < len(reasons) else "unknown wait reason"

    def wait_ns(self, goroutine: Goroutine, now_ns: int) -> int | None:
        """How long it has waited, given the monotonic clock; None when the runtime did not note it.

        A collection that finds it waiting notes the end of the collection before, so the time may be longer
        than the truth by up to a cycle, and there is none before the second collection.
        """
        if goroutine.status not in (GoStatus.WAITING, GoStatus.SYSCALL) or not goroutine.wait_since_ns:
            return None
        return max(0, now_ns - goroutine.wait_since_ns)

    def creation_site(self, goroutine: Goroutine) -> SourceFrame | None:
        """The go statement that made it; None for those the runtime made at start."""
        if not goroutine.gopc:
            return None
        frames = self.frames_at(goroutine.gopc, is_return_address=True)
        return frames[0] if frames else None

    def entry(self, goroutine: Goroutine) -> SourceFrame | None:
        """The function that it runs, where it begins."""
        frames = self.frames_at(goroutine.startpc)
        return frames[-1] if frames else None

    def frames_at(self, pc: int, *, is_return_address: bool = False) -> tuple[SourceFrame, ...]:
        """The source frames at a pc of the process, innermost first; see `FunctionTable.frames_at`."""
        return self.binary.functions.frames_at(pc - self.bias, is_return_address=is_return_address)

    def labels(self, goroutine: Goroutine) -> dict[str, str]:
        """The profiler labels (`runtime/pprof.Do`). Raises: `MemoryFaultError`, `RuntimeDataError`."""
        if not goroutine.labels:
            return {}
        return read_labels(self.memory, self.layouts, self.binary.version, goroutine.labels)

    def is_system(self, goroutine: Goroutine) -> bool:
        """Whether it belongs to the runtime (the collector's workers, the finalizer's...), as Go's traces see it."""
        entry = self.entry(goroutine)
        return (
            entry is not None
            and entry.function.startswith("runtime.")
            and entry.function not in _USER_ENTRIES
        )

    def waiting_on(self, goroutine: Goroutine) -> tuple[int, ...]:
        """The addresses of the channels it waits for, in the runtime's order (a select has several).

        Empty when it waits for something else. Raises: `MemoryFaultError`, `RuntimeDataError`.
        """
        layout = self.layouts["sudog"]
        channel = "c.maybeTraceablePtr.vu" if layout.has("c.maybeTraceablePtr.vu") else "c"
        channels: list[int] = []
        addr = goroutine.waiting
        while addr:
            if len(channels) >= _MAX_SUDOGS:
                raise RuntimeDataError(f"goroutine {goroutine.goid} waits for endlessly many channels")
            raw = self.memory.read(addr, layout.size)
            at = layout.get(raw, channel)
            if at:
                channels.append(at)
            addr = layout.get(raw, "waitlink")
        return tuple(channels)

    # -- Ms and Ps --------------------------------------------------------------------------------------------

    def iter_ms(self) -> Iterator[M]:
        """All Ms, newest first. Raises: `LayoutError`, `MemoryFaultError`, `RuntimeDataError`."""
        return self._iter_m_chain(read_u64(self.memory, self._find_allm() + self.bias))

    def read_m(self, addr: int) -> M:
        """The M whose record is at `addr`. Raises: `MemoryFaultError`."""
        return self.decoder.decode_m(addr, self.memory.read(addr, self.decoder.m_bytes))

    def find_m(self, tid: int) -> M | None:
        """The M that runs on the thread `tid`."""
        return next((m for m in self.iter_ms() if m.procid == tid), None)

    def _iter_m_chain(self, addr: int) -> Iterator[M]:
        for _ in range(_MAX_MS):
            if not addr:
                return
            m = self.read_m(addr)
            yield m
            addr = m.next
        raise RuntimeDataError("the list of Ms has no end")

    def _find_allm(self) -> int:
        if self._allm_addr is None:
            self._allm_addr = self.binary.find_variable_addr("runtime.allm") or self._search_allm()
        return self._allm_addr

    def _search_allm(self) -> int:
        """Stripped: of the variables that mexit uses, that from which the longest chain of Ms can be followed.

        Each M must be what it seems: its g0 must name it in turn. Any other pointer to an M starts a shorter chain.
        """
        best, longest = 0, 0
        for candidate in self.binary.iter_candidates("runtime.mexit"):
            length = self._chain_length(candidate + self.bias)
            if length > longest:
                best, longest = candidate, length
        if not best:
            raise LayoutError(
                f"{self.binary.path}: stripped, and the list of Ms cannot be told from its code"
            )
        return best

    def _chain_length(self, head: int) -> int:
        m_of_g = self.layouts["g"].offset("m")
        length = 0
        try:
            for m in self._iter_m_chain(read_u64(self.memory, head)):
                if m.addr % 8 or not m.g0 or read_u64(self.memory, m.g0 + m_of_g) != m.addr:
                    return 0
                length += 1
        except (MemoryFaultError, RuntimeDataError):
            return 0
        return length

    def read_ps(self) -> list[P]:
        """All Ps by id. Raises: `LayoutError`, `MemoryFaultError`, `RuntimeDataError`."""
        if self._allp_addr is None:
            self._allp_addr = self.binary.find_variable_addr("runtime.allp") or self._search_allp()
        return self._ps_at(self._allp_addr + self.bias)

    def _ps_at(self, slice_addr: int) -> list[P]:
        pointer, length, capacity = read_words(self.memory, slice_addr, 3)
        if not 0 < length <= capacity <= _MAX_PS:
            raise RuntimeDataError(f"the list of Ps says length {length}, capacity {capacity}")
        addrs = [addr for addr in read_words(self.memory, pointer, length) if addr]
        read, size = self.memory.read, self.decoder.p_bytes
        return [self.decoder.decode_p(addr, read(addr, size)) for addr in addrs]

    def _search_allp(self) -> int:
        """Stripped: the one slice that procresize uses whose elements are Ps, numbered from 0."""
        for candidate in self.binary.iter_candidates("runtime.procresize"):
            try:
                found = self._ps_at(candidate + self.bias)
            except (MemoryFaultError, RuntimeDataError):
                continue
            if found and all(p.id == number for number, p in enumerate(found)):
                return candidate
        raise LayoutError(f"{self.binary.path}: stripped, and the list of Ps cannot be told from its code")
