"""Stacks: of goroutines that wait, that are in a system call, that a signal interrupted, and of whole threads.

Frames are walked by the tables that Go's own tracebacks use (pcsp: how far the stack pointer has moved at each
pc), which are exact wherever a goroutine can stop; by frame pointers where the tables say nothing (foreign code,
functions that write SP). A walk crosses from a thread's system stack to the goroutine that called it
(systemstack, morestack, mcall) and from a signal handler into what was interrupted. It never fails on memory
that makes no sense: the stack then ends early and says why. Not locked: use from one thread.

Source: runtime/traceback.go (unwinder), asm_amd64.s, asm_arm64.s, defs_linux_*.go (sigcontext), Go 1.21 to 1.27.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from goabi.errors import MemoryFaultError, PclntabError, RuntimeDataError
from goabi.goroutine import Goroutine, GoStatus, M
from goabi.pclntab import Function, SourceFrame
from goabi.sched import GoRuntime

Registers = Mapping[str, int]
"""A thread's registers by the names in `Arch`; pc, sp and the frame pointer are needed."""

DEFAULT_MAX_FRAMES = 512
_WINDOW_BYTES = 4096
_CACHE_LIMIT = 1 << 16

_SYSTEMSTACK = "runtime.systemstack"
_MORESTACK = frozenset({"runtime.morestack", "runtime.morestack_noctxt"})
_MCALL = "runtime.mcall"
_SIGNAL_HANDLERS = frozenset({"runtime.sigtramp", "runtime.cgoSigtramp"})
_INJECTED = frozenset({"runtime.sigpanic", "runtime.asyncPreempt", "runtime.debugCallV2"})
_CGO_CALLBACK = "runtime.cgocallback"

# From the handler's frame to the interrupted registers, and their names as they lie there.
_AMD64_UCONTEXT = 0
_AMD64_GREGS = 40
_AMD64_NAMES = (
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip"),
)
_ARM64_UCONTEXT = 128
_ARM64_REGS = 176 + 8
_ARM64_NAMES = (*(f"x{number}" for number in range(31)), "sp", "pc")
_SIGNAL_NAMES: dict[str, tuple[str, ...]] = {"amd64": _AMD64_NAMES, "arm64": _ARM64_NAMES}


class Frame(NamedTuple):
    """One physical frame.

    `pc` is the process's, `sp` and `cfa` bound the frame (`cfa`: the stack pointer before the call), `goroutine`
    is the address of the g on whose stack it lies (0 if unknown), `exact`: `pc` is the very instruction, not the
    one after a call. `function` is None in foreign code.
    """

    pc: int
    sp: int
    cfa: int
    function: Function | None
    goroutine: int
    exact: bool


class Stack(NamedTuple):
    """Frames, innermost first. `problem` is "" when the walk came to the outermost frame."""

    frames: tuple[Frame, ...]
    problem: str

    @property
    def is_complete(self) -> bool:
        """Whether the outermost frame was reached."""
        return not self.problem


class _PcInfo(NamedTuple):
    function: Function
    delta: int | None


class _Window:
    """Words of a stack, read in pieces of a page: most stacks end within one."""

    def __init__(self, runtime: GoRuntime) -> None:
        self._memory = runtime.memory
        self._start = 0
        self._data = b""

    def load(self, start: int, end: int) -> None:
        """Make `[start, end)`, or its first page, the piece at hand."""
        self._start = start
        self._data = self._memory.read(start, max(8, min(end - start, _WINDOW_BYTES)))

    def word(self, addr: int) -> int:
        """The word at `addr`. Raises: `MemoryFaultError`."""
        offset = addr - self._start
        if not 0 <= offset <= len(self._data) - 8:
            try:
                self.load(addr, addr + _WINDOW_BYTES)
            except MemoryFaultError:
                self.load(addr, addr + 8)
            offset = 0
        return int.from_bytes(self._data[offset : offset + 8], "little")


class Unwinder:
    """Walks the stacks of a program. `registers_of` gives a thread's registers by tid, None when it has none to give.

    Without it, goroutines that run have no stack to show.
    """

    def __init__(
        self, runtime: GoRuntime, registers_of: Callable[[int], Registers | None] | None = None
    ) -> None:
        self._runtime = runtime
        self._arch = runtime.binary.arch
        self._functions = runtime.binary.functions
        self._bias = runtime.bias
        self._registers_of = registers_of
        self._pcs: dict[int, _PcInfo | None] = {}

    # -- what to unwind ---------------------------------------------------------------------------------------

    def unwind_goroutine(self, goroutine: Goroutine, max_frames: int = DEFAULT_MAX_FRAMES) -> Stack:
        """The goroutine's stack; if it runs, its thread's from the innermost frame on (see `registers_of`)."""
        if goroutine.is_dead:
            return Stack((), "the goroutine is not alive")
        if goroutine.syscall_sp:
            start = (goroutine.syscall_pc, goroutine.syscall_sp, 0, 0)
        elif goroutine.status is GoStatus.RUNNING:
            return self._unwind_running(goroutine, max_frames)
        else:
            start = (goroutine.sched_pc, goroutine.sched_sp, goroutine.sched_bp, goroutine.sched_lr)
        return self._walk(*start, goroutine=goroutine, m=None, exact=False, max_frames=max_frames)

    def _unwind_running(self, goroutine: Goroutine, max_frames: int) -> Stack:
        if self._registers_of is None or not goroutine.m:
            return Stack((), "the goroutine is running, and its thread's registers are not known")
        try:
            m = self._runtime.read_m(goroutine.m)
        except MemoryFaultError as error:
            return Stack((), str(error))
        registers = self._registers_of(m.procid)
        if registers is None:
            return Stack((), f"the goroutine is running, and thread {m.procid} gives no registers")
        return self.unwind_thread(m, registers, max_frames)

    def unwind_thread(self, m: M, registers: Registers, max_frames: int = DEFAULT_MAX_FRAMES) -> Stack:
        """The stack of an M's thread that is stopped with these registers, on into the goroutine that it runs."""
        arch = self._arch
        pc, sp, fp = registers[arch.pc], registers[arch.sp], registers[arch.fp]
        goroutine = self._goroutine_at(m, sp)
        if m.vdso_sp and m.vdso_pc and self._pc_info(pc) is None:
            # In the kernel's page of code; the runtime noted whence it was called.
            pc, sp = m.vdso_pc, m.vdso_sp
            exact = False
        else:
            exact = True
        lr = registers.get(arch.lr, 0) if arch.lr else 0
        return self._walk(pc, sp, fp, lr, goroutine=goroutine, m=m, exact=exact, max_frames=max_frames)

    def _goroutine_at(self, m: M, sp: int) -> Goroutine | None:
        """Which of the M's stacks `sp` is on."""
        for addr in (m.curg, m.g0, m.gsignal):
            if addr:
                try:
                    goroutine = self._runtime.read_goroutine(addr)
                except (MemoryFaultError, RuntimeDataError):
                    continue
                if goroutine.stack_lo < sp <= goroutine.stack_hi:
                    return goroutine
        return None

    def iter_source_frames(self, stack: Stack) -> Iterator[SourceFrame]:
        """The stack as the source has it, innermost first: inlined calls are frames of their own."""
        for frame in stack.frames:
            if frame.function is None:
                yield SourceFrame("?", "?", 0, 0, False, frame.pc)
                continue
            pc = frame.pc - self._bias
            yield from self._functions.frames_at(
                pc, is_return_address=not frame.exact and pc > frame.function.entry
            )

    # -- the walk ---------------------------------------------------------------------------------------------

    def _pc_info(self, pc: int) -> _PcInfo | None:
        """What the tables say of a pc of the process; None outside of Go's text."""
        try:
            return self._pcs[pc]
        except KeyError:
            pass
        function = self._functions.find_function(pc - self._bias)
        delta = None if function is None else self._functions.sp_delta(function, pc - self._bias)
        info = None if function is None else _PcInfo(function, delta)
        if len(self._pcs) >= _CACHE_LIMIT:
            self._pcs.clear()
        self._pcs[pc] = info
        return info

    def _walk(
        self,
        pc: int,
        sp: int,
        fp: int,
        lr: int,
        *,
        goroutine: Goroutine | None,
        m: M | None,
        exact: bool,
        max_frames: int,
    ) -> Stack:
        frames: list[Frame] = []
        try:
            problem = self._walk_into(frames, pc, sp, fp, lr, goroutine, m, exact, max_frames)
        except (MemoryFaultError, PclntabError, RuntimeDataError) as error:
            problem = str(error)
        return Stack(tuple(frames), problem)

    def _walk_into(
        self,
        frames: list[Frame],
        pc: int,
        sp: int,
        fp: int,
        lr: int,
        goroutine: Goroutine | None,
        m: M | None,
        exact: bool,
        max_frames: int,
    ) -> str:
        uses_lr = self._arch.uses_lr
        window = _Window(self._runtime)
        high = goroutine.stack_hi if goroutine is not None else 0
        g_addr = goroutine.addr if goroutine is not None else 0
        if sp < high:
            window.load(sp, high)
        innermost = True
        if pc == 0:  # a call of a nil function: begin at the caller
            pc = lr if uses_lr else window.word(sp)
            sp, lr, exact = (sp, 0, False) if uses_lr else (sp + 8, 0, False)
        while len(frames) < max_frames:
            info = self._pc_info(pc)
            if info is None or info.delta is None:
                # Foreign code: only its frame pointer can lead back.
                frames.append(Frame(pc, sp, fp, info.function if info else None, g_addr, exact))
                if not sp < fp < (high or sp + (1 << 20)) or fp % 8:
                    return (
                        f"no Go function is known at {pc:#x}"
                        if info is None
                        else "a function without a table"
                    )
                pc, sp, fp, lr = window.word(fp + 8), fp + 16, window.word(fp), 0
                exact = innermost = False
                continue
            function, delta = info.function, info.delta
            name = function.name
            crossing = m is not None and g_addr == m.g0 and m.curg != 0
            if crossing and m is not None and (name in _MORESTACK or name == _MCALL):
                # These do not return: the goroutine goes on where it was saved.
                frames.append(Frame(pc, sp, sp, function, g_addr, exact))
                saved = self._runtime.read_goroutine(m.curg)
                pc, sp, fp, lr = saved.sched_pc, saved.sched_sp, saved.sched_bp, saved.sched_lr
                high, g_addr, exact, innermost, m = saved.stack_hi, saved.addr, False, False, None
                if not pc or not sp:
                    return "the goroutine was being switched"
                window.load(sp, high)
                continue
            crossed = crossing and m is not None and name == _SYSTEMSTACK and not (uses_lr and delta == 0)
            if crossed and m is not None:
                saved = self._runtime.read_goroutine(m.curg)
                frame_sp, sp = sp, saved.sched_sp
                high, g_addr, m = saved.stack_hi, saved.addr, None
                if not sp:
                    return "the goroutine was being switched"
                window.load(sp, high)
            else:
                frame_sp = sp
            cfa = sp + delta + (0 if uses_lr else 8)
            frames.append(Frame(pc, frame_sp, cfa, function, g_addr, exact))
            if name in _SIGNAL_HANDLERS:
                registers = self._interrupted_registers(cfa)
                arch = self._arch
                pc, sp, fp = registers[arch.pc], registers[arch.sp], registers[arch.fp]
                lr = registers[arch.lr] if arch.lr else 0
                interrupted = self._goroutine_at(m, sp) if m is not None else None
                high, g_addr = (interrupted.stack_hi, interrupted.addr) if interrupted else (0, 0)
                exact = innermost = True
                continue
            if function.is_top_frame:
                return ""
            if (
                function.writes_sp
                and not crossed
                and name != _CGO_CALLBACK
                and not (innermost and goroutine and goroutine.syscall_sp)
            ):
                return f"{name} changes stacks"
            if not uses_lr:
                caller = window.word(cfa - 8)
            elif (innermost and sp < cfa) or lr == 0:
                caller = window.word(sp)
            else:
                caller = lr
            if not caller:
                return "the stack ends without an outermost frame"
            if caller == pc and cfa == sp:
                return "the stack leads in a circle"
            if high and cfa > high:
                return "the stack leads out of its bounds"
            fp = self._caller_fp(window, sp, cfa, delta, fp)
            pc, sp, lr = caller, cfa, 0
            exact, innermost = name in _INJECTED, False
            if uses_lr and exact:
                # The signal handler saved the link register on the stack before it made the call up.
                saved_lr = window.word(sp)
                sp += 16
                after = self._pc_info(pc)
                if after is None:
                    pc = saved_lr
                elif after.delta == 0:
                    lr = saved_lr
        return f"more than {max_frames} frames"

    def _caller_fp(self, window: _Window, sp: int, cfa: int, delta: int, fp: int) -> int:
        """The caller's frame pointer, which a Go function with a frame saves: at its top, or on arm64 below SP."""
        if delta == 0:
            return fp
        if self._arch.uses_lr:
            return window.word(sp - 8) if sp >= 8 else 0
        return window.word(cfa - 16) if cfa - 16 >= sp else fp

    def _interrupted_registers(self, cfa: int) -> dict[str, int]:
        """What a signal handler's frame says of the registers before the signal."""
        if self._arch.name == "amd64":
            start = cfa + _AMD64_UCONTEXT + _AMD64_GREGS
        else:
            start = cfa + _ARM64_UCONTEXT + _ARM64_REGS
        names = _SIGNAL_NAMES[self._arch.name]
        raw = self._runtime.memory.read(start, 8 * len(names))
        return {
            name: int.from_bytes(raw[8 * index : 8 * index + 8], "little") for index, name in enumerate(names)
        }
