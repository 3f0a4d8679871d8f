"""One emulated program from its first instruction to its exit status.

`Machine` joins the parts: a processor, an address space, threads, signals, clocks. It answers the syscalls that are
about the program itself (`calls_*.py`); all others, those that reach outside, it hands to its `resources`.

A syscall is answered in the middle of the processor's run, and if the thread must wait, another one's registers
are put in without leaving it: that takes microseconds, where starting the processor takes a dozen. Whoever computes
without syscalls is stopped when its slice is over: after `SLICE_SECONDS` by a timer thread, or, if the run is to
be repeatable, after `SLICE_BYTES` of code.

Not trusted: the program.
Thread rules: one thread constructs and runs a machine; signals may come from any (`raise_signal`).
"""

import errno
import random
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from goabi.elf_header import read_elf_header
from stepping.emulation.abi import abi_of
from stepping.emulation.address_space import PAGE_BYTES, PROT_EXEC, PROT_READ, AddressSpace
from stepping.emulation.clock import Clock, CountingClock, HostClock
from stepping.emulation.futex import Futexes
from stepping.emulation.loader import load
from stepping.emulation.registers import Context
from stepping.emulation.resources import Observer, Resources
from stepping.emulation.signals import SI_KERNEL, UNBLOCKABLE, Signals, make_info
from stepping.emulation.threads import BLOCKED, RELOAD, Result, Scheduler, Thread
from stepping.emulator import ADDRESS_LIMIT, Processor, Stopped, Trap, TrapKind
from stepping.syscalls import Syscall, SyscallClass, Sysno, by_number
from stepping.unicorn_api import EmulatorError

if TYPE_CHECKING:
    from stepping.emulation.elsewhere import Elsewhere

SLICE_SECONDS = 0.002
SLICE_BYTES = 400_000

_SLICES_PER_RESIZE = 16

_SIGRETURN_AT = ADDRESS_LIMIT - (1 << 20)

_BUS_ADRERR = 2
_SEGV_MAPERR, _SEGV_ACCERR, _ILL_ILLOPN, _TRAP_BRKPT, _FPE_INTDIV = 1, 2, 2, 1, 1


Handler = Callable[[Thread, list[int]], Result]


class Machine:
    """Runs the program *path* with *argv* and *env*.

    seed: makes the run depend on nothing but the program and this number: times, randomness and the order in
    which threads run. pid: what the program is told its process id is. linker_path: where its dynamic linker is, if
    not where the program says.

    Raises:
        LoadError, OSError, GoAbiError: the program cannot be run.
    """

    def __init__(
        self,
        path: str,
        argv: Sequence[bytes],
        env: Sequence[bytes],
        resources: Resources,
        *,
        pid: int,
        seed: int | None = None,
        observer: Observer | None = None,
        linker_path: str | None = None,
    ) -> None:
        from stepping.emulation import calls

        header = read_elf_header(path)
        self.path = path
        self.pid = pid
        self.seed = seed
        self.resources = resources
        self.observer = observer
        self.abi = abi_of(header.arch)
        self.clock: Clock = HostClock() if seed is None else CountingClock()
        self.random = random.Random(seed) if seed is not None else random.SystemRandom()
        ticks = None if seed is None else self.clock.ticks
        self.processor = Processor(header.arch, self._on_syscall, ticks, budgeted=seed is not None)
        self.space = AddressSpace(self.processor)
        self.scheduler = Scheduler(self.clock)
        self.futexes = Futexes(self.space, self.scheduler)
        self.signals = Signals(
            self.space,
            self.abi,
            self.scheduler,
            self.die,
            _SIGRETURN_AT,
        )
        self.status: int | None = None
        self.threads: dict[int, Thread] = {}
        self.current: Thread | None = None
        #: For debuggers: asked at a trap, and before a syscall is made, whether they take it; the thread has not
        #: gone on then.
        self.on_trap: Callable[[Thread, Trap], bool] | None = None
        self.on_call: Callable[[Thread, list[int]], bool] | None = None
        #: Where the last instruction was that the processor does not know.
        self.unknown_instruction: int | None = None
        self._elsewhere: Elsewhere | None = None
        self._paused = False
        self._next_tid = pid
        self._slices = 0
        self._ticker: _Ticker | None = None
        #: Whether this is a process that the program forked.
        self.is_child = False
        self._rows = by_number(header.arch)
        self._own_handlers = calls.handlers(self, header.arch)
        self._handlers = {
            number: handler
            for number, handler in self._own_handlers.items()
            if self._rows[Sysno(number)].name not in resources.claimed
        }
        self._map_sigreturn()
        random_bytes = self.random.randbytes(16)
        loaded = load(header, path, self.space, self.abi, argv, env, random_bytes, linker_path)
        self.brk_start = self.brk = loaded.brk
        #: What is added to addresses in the program's file.
        self.load_bias = loaded.bias
        main = self.new_thread()
        main.context.save()
        main.context.pc = loaded.entry
        main.context.sp = loaded.sp
        self.scheduler.ready.append(main)

    def run(self) -> int:
        """Run the program until it is gone; return its wait status, as waitpid(2) gives it."""
        self.run_until_paused()
        assert self.status is not None
        if self.observer is not None:
            self.observer.ended(self, self.status)
        return self.status

    def run_until_paused(self) -> None:
        """Run the program until it is gone (`status`), or `pause` was called."""
        self._ticker = None if self.seed is not None else _Ticker(self.processor)
        try:
            while self.status is None and not self._paused:
                self._advance()
        finally:
            self._paused = False
            if self._ticker is not None:
                self._ticker.close()

    def pause(self) -> None:
        """Make `run_until_paused` return soon. For the machine's thread and signal handlers that run in it."""
        self._paused = True
        self.scheduler.complete(lambda: None)
        self.processor.stop()

    def step(self, thread: Thread) -> None:
        """Execute one instruction of *thread*; others run only if it waits in a syscall.

        It may be gone afterwards, or still waiting if `pause` was called.
        """
        self._paused = False
        if not self._run_until_ready(thread):
            return
        self.scheduler.ready.remove(thread)
        self.scheduler.ready.appendleft(thread)
        self._run_slice(once=True)
        if self._run_until_ready(thread) and not self._paused:
            self._prepare(thread)  # the result of its call, a signal's handler

    def _run_until_ready(self, thread: Thread) -> bool:
        while self.status is None and thread.tid in self.threads and not self._paused:
            if thread.wait is None:
                return True
            self._advance()
        return False

    def _advance(self) -> None:
        if not self.scheduler.ready:
            if self.observer is not None:
                self.observer.flush()
            self.scheduler.poll(may_sleep=True)
            return
        self._run_slice()
        self.scheduler.poll(may_sleep=False)

    def close(self) -> None:
        """Give everything up."""
        self.processor.close()
        self.space.close()
        self.scheduler.close()

    def keep_elsewhere(self, elsewhere: "Elsewhere | None") -> None:
        """Have a part of the program's memory elsewhere. To be called before it runs."""
        self._elsewhere = self.space.elsewhere = elsewhere

    def own_handler(self, row: Syscall) -> "Handler | None":
        """Return the machine's own implementation of the call *row*, if it is about the program itself."""
        return self._own_handlers.get(row.numbers[self.abi.arch])

    def new_thread(self) -> Thread:
        """Return a new thread of the program, which is not ready yet."""
        thread = Thread(self._next_tid, Context(self.processor))
        self._next_tid += 1
        self.threads[thread.tid] = thread
        return thread

    def become_child(self, thread: Thread, pid: int) -> None:
        """Be the copy that fork(2) made of this machine, with *thread* alone, whose syscall is being made."""
        self.processor.after_fork()
        self.scheduler.after_fork()
        self.is_child = True
        self.observer = None
        self.keep_elsewhere(None)
        self.pid = thread.tid = pid
        self.threads = {pid: thread}
        self._next_tid = pid + 1
        thread.pending.clear()
        self.signals.forget_pending()
        self.masks_changed()
        if self._ticker is not None:
            self._ticker = _Ticker(self.processor)

    def continue_with(self, thread: Thread, result: int, *, sp: int | None, tls: int | None) -> Result:
        """Let *thread* return *result* from its syscall, with another stack and storage of its own if given."""
        thread.context.save()
        if sp is not None:
            thread.context.sp = sp
        if tls is not None:
            thread.context.set_tls(tls)
        thread.result = result
        return RELOAD

    def end_thread(self, thread: Thread) -> None:
        """Take *thread* out of the program."""
        del self.threads[thread.tid]
        self.masks_changed()
        thread.context.free()
        if thread.clear_child_tid and self.space.allows(thread.clear_child_tid, 4, 2):
            self.space.view[thread.clear_child_tid : thread.clear_child_tid + 4] = bytes(4)
            self.futexes.wake(thread.clear_child_tid, 1)

    def masks_changed(self) -> None:
        """Let the kernel keep those signals back that no thread wants now."""
        outside = self.signals.outside
        if outside is not None:
            mask = -1 if self.threads else 0
            for thread in self.threads.values():
                mask &= thread.mask
            outside.mask_changed(mask)

    def wait_with_mask(self, thread: Thread, mask: int) -> bool:
        """Let *thread* block the signals *mask* until its call ends; return False if one is there that ends it."""
        thread.saved_mask = thread.mask
        thread.mask = mask & ~UNBLOCKABLE
        self.masks_changed()
        return not self.signals.has_deliverable(thread)

    def die(self, number: int) -> None:
        """End the program as signal *number* does."""
        self.exit(number)

    def exit(self, status: int) -> None:
        """End the program with wait status *status*."""
        if self.status is None:
            self.status = status
        self.processor.stop()

    def raise_signal(self, number: int, info: bytes | None = None) -> None:
        """Send signal *number* to the program, from outside; any thread may call it.

        Where the run is to be repeatable, a child's end, which may come at any time, is told when no thread can run.
        """
        sent = info or make_info(number, SI_KERNEL)

        def send() -> None:
            self.signals.send_to_process(self.threads.values(), number, sent)

        if self.seed is not None and number == signal.SIGCHLD:
            self.scheduler.complete_when_idle(send)
            return
        self.scheduler.complete(send)
        self.processor.stop()

    # Running.

    def _run_slice(self, *, once: bool = False) -> None:
        """Run the thread that is next, and whichever follow it, until a slice is over or no thread is ready."""
        if not self._load_next():
            return
        assert self.current is not None
        budget = 0 if self.seed is None else SLICE_BYTES
        stop = self.processor.run(self.current.context.pc, budget, once=once)
        thread, self.current = self.current, None
        if self.seed is not None:
            self.clock.ran(SLICE_BYTES)
        if self.status is not None or thread is None:
            return
        thread.context.save()
        if isinstance(stop, Stopped):
            self.scheduler.ready.append(thread)
            self._slices += 1
            if not self._slices % _SLICES_PER_RESIZE:
                self.processor.resize_cache()
        else:
            self._on_trap(thread, stop)

    def _load_next(self) -> bool:
        """Put the next ready thread into the processor; return whether there is one."""
        ready = self.scheduler.ready
        while ready and self.status is None:
            thread = ready.popleft()
            if self._prepare(thread):
                thread.context.load()
                self.current = thread
                return True
        self.current = None
        return False

    def _prepare(self, thread: Thread) -> bool:
        """Finish the call of *thread* and deliver its signals; return whether the program still runs."""
        if thread.result is not None:
            if thread.is_observed:
                self._observe_end(thread, thread.result)
            thread.context.set_result(thread.result)
            thread.result = None
        waited = thread.saved_mask is not None
        if waited or thread.interrupted is not None or self.signals.has_deliverable(thread):
            self.signals.deliver(thread)
            if waited:
                self.masks_changed()
        return self.status is None

    def _on_syscall(self) -> None:
        """Answer the syscall that the processor is in; called in the middle of its run."""
        number, *args = call = self.processor.read_call()
        thread = self.current
        assert thread is not None
        if self.on_call is not None and self.on_call(thread, call):
            self._take_back(thread)
            return
        if self.observer is None:
            result = self._make_call(thread, number, args)
        else:
            result = self._observed(thread, number, args)
        if isinstance(result, int):
            if not (thread.pending or self.signals.has_deliverable(thread)):
                self.processor.set_result(result)
                return
            thread.context.save()
            thread.result = result
            self.scheduler.ready.appendleft(thread)
        elif result is BLOCKED:
            thread.context.save()
            thread.call = call[0] if self.abi.arch == "amd64" else call[1]
        elif result is RELOAD:
            self.scheduler.ready.appendleft(thread)
        if not self._load_next():
            self.processor.stop()

    def _take_back(self, thread: Thread) -> None:
        """Let *thread* be in front of the syscall that it is making, and stop."""
        thread.context.save()
        thread.context.pc -= self.abi.syscall_bytes
        self.scheduler.ready.appendleft(thread)
        self.current = None
        self.processor.stop()

    def _make_call(self, thread: Thread, number: int, args: list[int]) -> Result:
        handler = self._handlers.get(number)
        if self._elsewhere is not None:
            self._elsewhere.calls(thread)
            if handler is not None:
                with self._elsewhere.lent(args):
                    return handler(thread, args)
        return handler(thread, args) if handler is not None else self._call_outside(thread, number, args)

    def _observed(self, thread: Thread, number: int, args: list[int]) -> Result:
        assert self.observer is not None
        row = self._rows.get(Sysno(number))
        if row is not None:
            self.observer.begins(self, thread, row, args, self.clock.now())
            thread.is_observed = True
        result = self._make_call(thread, number, args)
        if thread.is_observed:
            if isinstance(result, int):
                self._observe_end(thread, result)
            elif result is not BLOCKED and thread.result is None:
                self._observe_end(thread, None)
        return result

    def _observe_end(self, thread: Thread, result: int | None) -> None:
        thread.is_observed = False
        if self.observer is not None:
            self.observer.called(self, thread.tid, result, self.clock.now())

    def _call_outside(self, thread: Thread, number: int, args: list[int]) -> Result:
        row = self._rows.get(Sysno(number))
        if row is None:
            return self.resources.unknown(self, thread, number, args)
        if not (
            row.klass.is_resource or row.klass is SyscallClass.HOST or row.name in self.resources.claimed
        ):
            return -errno.ENOSYS
        return self.resources.call(self, thread, row, args)

    def _on_trap(self, thread: Thread, trap: Trap) -> None:
        """Turn what the processor could not do into the signal that a kernel would send."""
        if trap.kind is TrapKind.MEMORY and self._elsewhere is not None:
            found = self._elsewhere.execute(thread, trap)
            if found is None:
                self.scheduler.ready.appendleft(thread)
                return
            trap = found
        if self.on_trap is not None and self.on_trap(thread, trap):
            self.scheduler.ready.appendleft(thread)
            return
        match trap.kind:
            case TrapKind.MEMORY:
                if self.space.fill(trap.address):
                    self.scheduler.ready.appendleft(thread)
                    return
                vma = self.space.find(trap.address)
                if vma is not None and vma.hollow and vma.protection:
                    number, code = signal.SIGBUS, _BUS_ADRERR
                else:
                    number, code = signal.SIGSEGV, _SEGV_MAPERR if vma is None else _SEGV_ACCERR
                address = trap.address
            case TrapKind.INSTRUCTION:
                self.unknown_instruction = thread.context.pc
                number, code, address = signal.SIGILL, _ILL_ILLOPN, thread.context.pc
            case TrapKind.BREAKPOINT:
                number, code, address = signal.SIGTRAP, _TRAP_BRKPT, thread.context.pc
            case TrapKind.ARITHMETIC:
                number, code, address = signal.SIGFPE, _FPE_INTDIV, thread.context.pc
            case _:
                raise EmulatorError(
                    f"exception {trap.detail} at {thread.context.pc:#x}, which no program raises"
                )
        if self.observer is not None:
            self.observer.signalled(self, thread.tid, number, make_info(number, code, address=address))
        self.signals.fault(thread, number, code, address)
        self.scheduler.ready.appendleft(thread)

    def _map_sigreturn(self) -> None:
        self.space.map(_SIGRETURN_AT, PAGE_BYTES, PROT_READ | PROT_EXEC)
        code = self.abi.sigreturn
        self.space.view[_SIGRETURN_AT : _SIGRETURN_AT + len(code)] = code


class _Ticker:
    """Stops a processor every `SLICE_SECONDS`, from a thread of its own."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="ptserver-slices", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _tick(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the machine's thread
        while not self._over.wait(SLICE_SECONDS):
            self._processor.stop()
