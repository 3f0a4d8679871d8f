"""Stacks: of goroutines that wait, that are in a system call, that a signal interrupted, and of whole threads.

Frames are walked by the tables that Go's own tracebacks use (pcsp: how far the stack pointer has moved at each
pc), which are exact wherever a goroutine can stop; by frame pointers where the tables say nothing (foreign code,
functions that write SP). A walk crosses from a thread's system stack to the goroutine that called it
(systemstack, morestack, mcall) and from a signal handler into what was interrupted. It never fails on memory
that makes no sense: the stack then ends early and says why. Not locked: use from one thread.

Source: runtime/traceback.go (unwinder), asm_amd64.s, asm_arm64.s, defs_linux_*.go (sigcontext), Go 1.21 to 1.27.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
_PANICS = frozenset({"runtime.gopanic", "runtime.sigpanic", "runtime.panicwrap"})
_CGO_CALLBACK = "runtime.cgocallback"
#: After which a walk goes on otherwise than by a return address.
_SPECIAL = frozenset({_SYSTEMSTACK, _MCALL}) | _MORESTACK | _SIGNAL_HANDLERS | _INJECTED

# From the handler's frame to the interrupted registers, and their names as they lie there.
_AMD64_NAMES = (
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip"),
)
_ARM64_NAMES = (*(f"x{number}" for number in range(31)), "sp", "pc")
_SIGNAL_FRAMES: dict[str, tuple[int, tuple[str, ...]]] = {
    "amd64": (40, _AMD64_NAMES),  # ucontext; its mcontext
    "arm64": (128 + 176 + 8, _ARM64_NAMES),  # siginfo, ucontext; the fault's address in its mcontext
}
_FOREIGN_FRAME_BYTES = 1 << 20


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


class _Window:
    """Words of a stack, read in pieces of a page: most stacks end within one."""

    def __init__(self, runtime: GoRuntime) -> None:
        self._memory = runtime.memory
        self.start = 0
        self._data = b""

    def load(self, start: int, end: int) -> None:
        """Make `[start, end)`, or its first page, the piece at hand."""
        self.start = start
        self._data = self._memory.read(start, max(8, min(end - start, _WINDOW_BYTES)))

    def words(self) -> Sequence[int]:
        """The words at hand, from `start` on."""
        return memoryview(self._data[: len(self._data) & -8]).cast("Q")

    def word(self, addr: int) -> int:
        """The word at `addr`. Raises: `MemoryFaultError`."""
        offset = addr - self.start
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
        self._functions = runtime.binary.functions
        self._bias = runtime.bias
        self._registers_of = registers_of
        #: What `pc_info` has said so far.
        self.pcs: dict[int, PcInfo | None] = {}

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
        return self._walk(_Walk(self, self._runtime, goroutine).start_at(*start), max_frames)

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
        arch = self._runtime.binary.arch
        pc, sp, fp = registers[arch.pc], registers[arch.sp], registers[arch.fp]
        lr = registers.get(arch.lr, 0) if arch.lr else 0
        goroutine = self.goroutine_at(m, sp)
        # In the kernel's page of code: the runtime noted whence it was called.
        in_vdso = bool(m.vdso_sp and m.vdso_pc) and self.pc_info(pc) is None
        if in_vdso:
            pc, sp = m.vdso_pc, m.vdso_sp
        walk = _Walk(self, self._runtime, goroutine, m, exact=not in_vdso).start_at(pc, sp, fp, lr)
        return self._walk(walk, max_frames)

    def iter_source_frames(self, stack: Stack, *, wrappers: bool = True) -> Iterator[SourceFrame]:
        """The stack as the source has it, innermost first: inlined calls are frames of their own.

        Without `wrappers`, what the compiler made is left out, as Go's own traces do.
        """
        hidden = -1 if wrappers else self._functions.wrapper_id
        called = ""
        for frame in stack.frames:
            if frame.function is None:
                yield SourceFrame("?", "?", 0, 0, False, frame.pc, 0)
                continue
            pc = frame.pc - self._bias
            for source in self._functions.frames_at(
                pc, is_return_address=not frame.exact and pc > frame.function.entry
            ):
                # A wrapper that panicked is shown, for the reason is its own.
                if source.func_id != hidden or wrappers or called in _PANICS:
                    yield source
                called = source.function

    # -- what a walk asks -------------------------------------------------------------------------------------

    def pc_info(self, pc: int) -> "PcInfo | None":
        """What the tables say of a pc of the process; None outside of Go's text."""
        try:
            return self.pcs[pc]
        except KeyError:
            pass
        function = self._functions.find_function(pc - self._bias)
        delta = None if function is None else self._functions.sp_delta(function, pc - self._bias)
        info = None
        if function is not None:
            plain = delta is not None and delta >= 0 and delta % 8 == 0 and not function.writes_sp
            plain = plain and not function.is_top_frame and function.name not in _SPECIAL
            info = PcInfo(function, delta, plain)
        if len(self.pcs) >= _CACHE_LIMIT:
            self.pcs.clear()
        self.pcs[pc] = info
        return info

    def goroutine_at(self, m: M, sp: int) -> Goroutine | None:
        """Which of the M's stacks `sp` is on: its goroutine's, its own or its signals'."""
        for addr in (m.curg, m.g0, m.gsignal):
            if addr:
                try:
                    goroutine = self._runtime.read_goroutine(addr)
                except (MemoryFaultError, RuntimeDataError):
                    continue
                if goroutine.stack_lo < sp <= goroutine.stack_hi:
                    return goroutine
        return None

    def _walk(self, walk: "_Walk", max_frames: int) -> Stack:
        try:
            problem = walk.run(max_frames)
        except (MemoryFaultError, PclntabError, RuntimeDataError) as error:
            problem = str(error)
        return Stack(tuple(walk.frames), problem)


class PcInfo(NamedTuple):
    """A pc's function, and how far the stack pointer has moved there; None where the tables are silent.

    `is_plain`: nothing but a return address leads from its frame to the next, which is one of the same stack.
    """

    function: Function
    delta: int | None
    is_plain: bool


class _StackEnd(Exception):
    """The walk is over; the argument says why it is not complete, "" when it is."""


class _Walk:
    """One walk: where it is, and the frames so far. `m` is kept only while its system stack may be crossed."""

    def __init__(
        self,
        unwinder: Unwinder,
        runtime: GoRuntime,
        goroutine: Goroutine | None,
        m: M | None = None,
        *,
        exact: bool = False,
    ) -> None:
        self._unwinder = unwinder
        self._runtime = runtime
        self._uses_lr = runtime.binary.arch.uses_lr
        self._m = m
        self._window = _Window(runtime)
        self._in_syscall = goroutine is not None and bool(goroutine.syscall_sp)
        self._exact = exact
        self._innermost = True
        self.frames: list[Frame] = []
        self._pc = self._sp = self._fp = self._lr = self._high = self._g = 0
        if goroutine is not None:
            self._high, self._g = goroutine.stack_hi, goroutine.addr

    def start_at(self, pc: int, sp: int, fp: int, lr: int) -> "_Walk":
        """Set where the walk begins."""
        self._pc, self._sp, self._fp, self._lr = pc, sp, fp, lr
        return self

    def run(self, max_frames: int) -> str:
        """Walk to the end. Returns what kept it from the outermost frame. Raises: memory and table errors."""
        if self._sp < self._high:
            self._window.load(self._sp, self._high)
        if self._pc == 0:  # a call of a nil function: begin at the caller
            self._pc = self._lr if self._uses_lr else self._window.word(self._sp)
            self._sp += 0 if self._uses_lr else 8
            self._lr, self._exact = 0, False
        try:
            if not self._uses_lr and not self._in_syscall and not self._on_system_stack():
                self._step_plainly(max_frames)
            while len(self.frames) < max_frames:
                self._step()
        except _StackEnd as end:
            return str(end)
        return f"more than {max_frames} frames"

    def _step(self) -> None:
        info = self._unwinder.pc_info(self._pc)
        if info is None or info.delta is None:
            self._step_by_frame_pointer(info.function if info else None)
            return
        function, delta = info.function, info.delta
        name = function.name
        frame_sp, crossed = self._sp, False
        if self._on_system_stack():
            if name in _MORESTACK or name == _MCALL:
                self._append(function, self._sp, self._sp)
                self._cross_for_good()
                return
            # On arm64 a delta of 0 says that the switch has not happened yet, or is over.
            if name == _SYSTEMSTACK and not (self._uses_lr and delta == 0):
                crossed = True
                saved = self._leave_system_stack()
                self._sp = saved.sched_sp
                self._window.load(self._sp, self._high)
        cfa = self._sp + delta + (0 if self._uses_lr else 8)
        self._append(function, frame_sp, cfa)
        if name in _SIGNAL_HANDLERS:
            self._step_into_interrupted(cfa)
            return
        if function.is_top_frame:
            raise _StackEnd("")
        if function.writes_sp and not crossed and name != _CGO_CALLBACK:
            if name == _MCALL and self._m is not None and not self._m.curg:
                raise _StackEnd("")  # the thread has no goroutine: its scheduler's stack begins here
            # A system call's wrapper may write SP, but has saved where it was before.
            if not (self._innermost and self._in_syscall):
                raise _StackEnd(f"{name} changes stacks")
        self._step_to_caller(name, cfa, delta)

    def _step_plainly(self, max_frames: int) -> None:
        """Do what `_step` does, in a third of the time, as long as frames are plain and within the window."""
        infos, words, frames = self._unwinder.pcs, self._window.words(), self.frames
        pc, sp, fp, exact = self._pc, self._sp, self._fp, self._exact
        start, goroutine = self._window.start, self._g
        end = min(start + 8 * len(words), self._high)
        while len(frames) < max_frames:
            info = infos.get(pc)
            if info is None or not info.is_plain or sp % 8:
                break
            function, delta, _ = info
            assert delta is not None
            cfa = sp + delta + 8
            if not start <= sp < cfa <= end:
                break
            caller = words[(cfa - start >> 3) - 1]
            if not caller:
                break
            frames.append(Frame(pc, sp, cfa, function, goroutine, exact))
            if delta:
                fp = words[(cfa - start >> 3) - 2]
            pc, sp, exact = caller, cfa, False
            self._lr, self._innermost = 0, False
        self._pc, self._sp, self._fp, self._exact = pc, sp, fp, exact

    def _append(self, function: Function | None, sp: int, cfa: int) -> None:
        self.frames.append(Frame(self._pc, sp, cfa, function, self._g, self._exact))

    def _step_to_caller(self, name: str, cfa: int, delta: int) -> None:
        word = self._window.word
        if not self._uses_lr:
            caller = word(cfa - 8)
        elif (self._innermost and self._sp < cfa) or self._lr == 0:
            caller = word(self._sp)
        else:
            caller = self._lr
        if not caller:
            raise _StackEnd("the stack ends without an outermost frame")
        if caller == self._pc and cfa == self._sp:
            raise _StackEnd("the stack leads in a circle")
        if self._high and cfa > self._high:
            raise _StackEnd("the stack leads out of its bounds")
        self._fp = self._caller_fp(cfa, delta)
        self._pc, self._sp, self._lr = caller, cfa, 0
        self._exact, self._innermost = name in _INJECTED, False
        if self._uses_lr and self._exact:
            # The signal handler saved the link register on the stack before it made the call up.
            saved_lr = word(self._sp)
            self._sp += 16
            info = self._unwinder.pc_info(self._pc)
            if info is None:
                self._pc = saved_lr
            elif info.delta == 0:
                self._lr = saved_lr

    def _caller_fp(self, cfa: int, delta: int) -> int:
        """The caller's frame pointer, which a function with a frame saves: at its top, or on arm64 below SP."""
        if delta == 0:
            return self._fp
        if self._uses_lr:
            return self._window.word(self._sp - 8)
        return self._window.word(cfa - 16) if cfa - 16 >= self._sp else self._fp

    def _step_by_frame_pointer(self, function: Function | None) -> None:
        """Foreign code: only its frame pointer can lead back."""
        fp = self._fp
        self._append(function, self._sp, fp)
        if not self._sp < fp < (self._high or self._sp + _FOREIGN_FRAME_BYTES) or fp % 8:
            what = "a function without a table" if function else f"no Go function is known at {self._pc:#x}"
            raise _StackEnd(what)
        self._pc, self._sp, self._fp, self._lr = self._window.word(fp + 8), fp + 16, self._window.word(fp), 0
        self._exact = self._innermost = False

    # -- crossings --------------------------------------------------------------------------------------------

    def _on_system_stack(self) -> bool:
        return self._m is not None and self._g == self._m.g0 and self._m.curg != 0

    def _leave_system_stack(self) -> Goroutine:
        """Go on with the goroutine's stack; returns the goroutine as it was saved."""
        assert self._m is not None
        saved = self._runtime.read_goroutine(self._m.curg)
        if not saved.sched_sp:
            raise _StackEnd("the goroutine was being switched")
        self._high, self._g, self._m = saved.stack_hi, saved.addr, None
        return saved

    def _cross_for_good(self) -> None:
        """From a function that does not return: the goroutine goes on where it was saved."""
        saved = self._leave_system_stack()
        self.start_at(saved.sched_pc, saved.sched_sp, saved.sched_bp, saved.sched_lr)
        self._exact = self._innermost = False
        self._window.load(self._sp, self._high)

    def _step_into_interrupted(self, cfa: int) -> None:
        """From a signal handler to what the signal interrupted, whose registers the kernel laid there."""
        arch = self._runtime.binary.arch
        start, names = _SIGNAL_FRAMES[arch.name]
        raw = self._runtime.memory.read(cfa + start, 8 * len(names))
        registers = {
            name: int.from_bytes(raw[8 * index : 8 * index + 8], "little") for index, name in enumerate(names)
        }
        pc, sp = registers[arch.pc], registers[arch.sp]
        self.start_at(pc, sp, registers[arch.fp], registers[arch.lr] if arch.lr else 0)
        interrupted = self._unwinder.goroutine_at(self._m, sp) if self._m is not None else None
        self._high, self._g = (interrupted.stack_hi, interrupted.addr) if interrupted else (0, 0)
        self._exact = self._innermost = True
