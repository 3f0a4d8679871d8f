"""A host of a spread program: one instance, its faults and its threads. It does what the home says, and decides
nothing.

At host 0 the program began, and the kernel's state of it is there: every thread exists there, even while it runs
elsewhere (it is *parked* then, and makes the calls that the thread elsewhere asks for). The other hosts have threads
that are lent to the program's for a while.

Thread rules: the thread that traces.
"""

import contextlib
import signal
from collections.abc import Callable, Mapping
from typing import cast

from ptserver.spread.children import Children
from ptserver.spread.fault_signals import decode_fault, encode_segfault
from ptserver.spread.futexes import COMMAND_MASK, FUTEX_BYTES, FUTEX_PRIVATE_FLAG, WAKES
from ptserver.spread.holding import ProcessorUse
from ptserver.spread.host_pages import Emit, HostPages, is_in_call
from ptserver.spread.host_threads import Doing, HostThread
from ptserver.spread.messages import (
    AddRegion,
    Called,
    Capture,
    Captured,
    Done,
    End,
    Execute,
    Executed,
    Kill,
    Preempted,
    Proceed,
    ProgramExited,
    Protect,
    Quit,
    Return,
    SetAction,
    SignalsWait,
    SpreadMessage,
    Start,
    Stop,
    Strayed,
    ThreadBorn,
    ThreadGone,
    ThreadState,
    Woke,
)
from ptserver.spread.passing import PassOn
from ptserver.spread.requests import Later
from ptserver.spread.waiting_signals import WaitingSignals
from stepping import gadget, ptrace_api
from stepping.errors import SteppingError, TraceeGoneError
from stepping.gadget import AFTER_SYSCALL, SCRATCH
from stepping.instance import Instance
from stepping.maps import USER_START
from stepping.registers import AMD64, Registers
from stepping.stops import Args
from stepping.syscalls import SYSCALLS
from stepping.timed_call import make_again
from stepping.tracee import Tracee, has_fault, read_pid
from stepping.wait_status import Event, WaitKind, WaitStatus

#: CLONE_VM, FS, FILES, SIGHAND, SYSVSEM, THREAD: a thread that nobody waits for.
_THREAD_FLAGS = 0x50F00
_SIGSET_BYTES = 8
_CLONE, _FUTEX, _SIGALTSTACK = (SYSCALLS[name].numbers["amd64"] for name in ("clone", "futex", "sigaltstack"))
_NO_CALL, _U32 = (1 << 64) - 1, (1 << 32) - 1
_RAX, _ORIG_RAX, _RSP = (AMD64.index[name] for name in ("rax", "orig_rax", "rsp"))
_ARGS = tuple(AMD64.index[name] for name in AMD64.args)
#: What a thread has computed, since it came or was last asked about, of which policies are asked.
_BUSY_NS = 5_000_000


class SpreadHost:
    """Host number *number*, which keeps *instance*; tells the home by *emit*, calls functions *later*.

    pass_on: sends a page straight to another host, if there is a connection. takers: what to do for further messages.
    children: takes what becomes of the program's, at host 0. goes_on: called when a thread is let go on.
    tells_words: whether the home would have to ask for the words of futexes.
    """

    def __init__(
        self,
        number: int,
        instance: Instance,
        emit: Emit,
        later: Later,
        pass_on: PassOn = lambda to, page: False,
        takers: Mapping[type, Callable[..., None]] | None = None,
        children: Children | None = None,
        goes_on: Callable[[], None] = lambda: None,
        tells_words: bool = False,
    ) -> None:
        self.number = number
        self.instance = instance
        self._emit = emit
        self._later = later
        self._children = children
        self._goes_on = goes_on
        self._tells_words = tells_words
        self._use = ProcessorUse()
        self._stopped = ptrace_api.StoppedThreads(AMD64.codec.size)
        self.pages = HostPages(instance, emit, self._name, self._segfault, later, self._use, pass_on, goes_on)
        self._by_kernel_tid: dict[int, HostThread] = {}
        self._by_tid: dict[int, HostThread] = {}
        self._idle: list[HostThread] = []
        self._births: dict[
            int, int
        ] = {}  # by its stack, where a thread goes on that one elsewhere has created
        self._actions: dict[int, bytes] = {}
        self.ended = False
        self._takers: dict[type, Callable[..., None]] = {
            **(takers or {}),
            **self.pages.takers,
            Protect: self._protect,
            AddRegion: self._add_region,
            SetAction: self._set_action,
            Return: self._return,
            Proceed: self._proceed,
            Execute: self._execute,
            Stop: self._stop,
            Capture: self._capture,
            Start: self._start,
            Kill: self._kill,
            End: self._end,
            Quit: self._quit,
        }
        if number == 0:
            self._adopt(instance.main, instance.pid, Doing.ASKING)

    def take(self, message: SpreadMessage) -> None:
        """Do what the home says, unless the program is gone."""
        try:
            self._takers[type(message)](message)
        except (TraceeGoneError, ProcessLookupError):
            return

    def close(self) -> None:
        """Have the process end, and give up all descriptors."""
        for kernel_tid in self._by_kernel_tid:
            self._use.forget(kernel_tid)
        self.instance.close()

    def run_main(self) -> None:
        """Host 0: let the program begin."""
        thread = self._by_tid[self.instance.pid]
        thread.doing = Doing.RUNNING
        thread.tracee.resume()
        WaitingSignals(self.instance.pid, self._all_stopped, lambda: self._emit(SignalsWait()), self._later)

    def _all_stopped(self) -> bool:
        return not any(thread.doing is Doing.RUNNING for thread in self._by_tid.values())

    def _name(self, kernel_tid: int) -> int:
        thread = self._by_kernel_tid.get(kernel_tid)
        return thread.tid if thread is not None else 0

    def _segfault(self, kernel_tid: int, address: int) -> None:
        """Send SIGSEGV; its details follow when the thread is about to take it."""
        thread = self._by_kernel_tid.get(kernel_tid)
        if thread is not None:
            thread.denied = address
            self.instance.signal(kernel_tid, signal.SIGSEGV)

    # What changes the address space or the signal table.

    def _protect(self, message: Protect) -> None:
        by = self._caller(message.tid)
        result = gadget.inject(by, "mprotect", message.start, message.size, message.protection)
        self._emit(Done(message.request, "" if result == 0 else f"mprotect: error {-result}"))

    def _add_region(self, message: AddRegion) -> None:
        try:
            self.instance.add_region(message.start, message.size, self._caller(message.tid))
        except SteppingError as error:
            self._emit(Done(message.request, str(error)))
        else:
            self._emit(Done(message.request))

    def _set_action(self, message: SetAction) -> None:
        self.instance.memory.write(SCRATCH, message.action)
        result = gadget.inject(self._caller(0), "rt_sigaction", message.signo, SCRATCH, 0, _SIGSET_BYTES)
        self._emit(Done(message.request, "" if result == 0 else f"rt_sigaction: error {-result}"))

    def _caller(self, tid: int) -> Tracee:
        """Return a stopped thread that can make a call."""
        return self._thread(tid).tracee if self.number == 0 else self.instance.main

    # Threads, as the home says.

    def _return(self, message: Return) -> None:
        thread = self._thread(message.tid)
        if message.after:
            self.pages.passing.when_here(message.after, lambda: self._return_late(thread, message))
        else:
            self._answer(thread, message.result)

    def _return_late(self, thread: HostThread, message: Return) -> None:
        with contextlib.suppress(TraceeGoneError):
            if self._by_tid.get(message.tid) is thread:  # it has not ended meanwhile
                self._answer(thread, message.result)

    def _answer(self, thread: HostThread, result: int) -> None:
        """Let the call that a thread is stopped before return *result*, unmade."""
        tid, asked = thread.tracee.tid, thread.asked
        registers = self._stopped.read_general(tid) if asked is None else self._stopped.general(asked)
        registers[_RAX], registers[_ORIG_RAX] = result & _NO_CALL, _NO_CALL
        self._stopped.write_general(tid)
        self.pages.holdings.goes_on(tid)
        self._resume(thread)

    def _proceed(self, message: Proceed) -> None:
        self._resume(self._thread(message.tid))

    def _thread(self, tid: int) -> HostThread:
        """Return the program's thread *tid*, if it still is here; TraceeGoneError otherwise."""
        thread = self._by_tid.get(tid)
        if thread is None:
            raise TraceeGoneError(tid)
        return thread

    def _resume(self, thread: HostThread, *, deliver: bool = True) -> None:
        thread.doing, thread.asked = Doing.RUNNING, None
        thread.tracee.resume(deliver=deliver)
        self._goes_on()

    def _execute(self, message: Execute) -> None:
        thread = self._thread(message.tid)
        thread.doing = Doing.EXECUTING
        registers = Registers.decode(thread.tracee.layout, message.registers)
        if registers["orig_rax"] == _CLONE:
            self._births[registers["rsi"] or registers.sp] = registers.pc
        gadget.begin(thread.tracee, message.registers)

    def _stop(self, message: Stop) -> None:
        thread = self._thread(message.tid)
        if thread.doing is not Doing.RUNNING or self.pages.is_waiting(thread.tracee.tid):
            return
        if is_in_call(self.instance.pid, thread.tracee.tid):  # a stop could end it with EINTR
            return
        if not message.busy or self._has_computed(thread):
            thread.wanted = True
            thread.tracee.interrupt()

    def _capture(self, message: Capture) -> None:
        thread = self._thread(message.tid)
        state = gadget.capture(thread.tracee, self.instance.memory, thread.altstack)
        thread.altstack, thread.asked = state.altstack, None
        signals = gadget.take_pending(thread.tracee, self.instance.memory)
        if thread.denied is not None:  # it touches that again where it goes
            thread.denied = None
            signals = tuple(signo for signo in signals if signo != signal.SIGSEGV)
        self.pages.forget_thread(thread.tracee.tid)
        if self.number:
            self._release(thread)
        else:
            thread.doing = Doing.PARKED
        self._emit(Captured(message.tid, ThreadState(*state), signals))

    def _start(self, message: Start) -> None:
        thread = self._thread(message.tid) if self.number == 0 else self._lend(message.tid)
        state = message.state
        gadget.restore(
            thread.tracee,
            self.instance.memory,
            gadget.ThreadState(state.general, state.extended, state.mask, state.altstack),
            message.result,
            thread.altstack,
        )
        thread.altstack = state.altstack
        if message.held:
            thread.doing = Doing.ASKING
        else:
            self._resume(thread, deliver=False)
        thread.used = self._use.nanoseconds(thread.tracee.tid)

    def _lend(self, tid: int) -> HostThread:
        if self._idle:
            thread = self._idle.pop()
        else:
            tracee = gadget.clone_thread(self.instance.main, _THREAD_FLAGS)
            thread = self._by_kernel_tid[tracee.tid] = HostThread(tracee, 0, Doing.IDLE)
        thread.tid = tid
        self._by_tid[tid] = thread
        return thread

    def _release(self, thread: HostThread) -> None:
        del self._by_tid[thread.tid]
        thread.tid = 0
        thread.doing = Doing.IDLE
        self._idle.append(thread)

    def _kill(self, message: Kill) -> None:
        thread = self._by_tid.get(message.tid)
        if thread is not None:
            self.instance.signal(thread.tracee.tid, message.signo)

    def _end(self, message: End) -> None:
        """Forget a thread. It runs only if the whole program ends; it is not stopped then, and never used again."""
        thread = self._by_tid.get(message.tid)
        if thread is not None:
            self._release(thread)
            if not thread.tracee.is_stopped:
                self._idle.remove(thread)

    def _quit(self, _message: Quit) -> None:
        self.ended = True

    # What threads do.

    def knows(self, kernel_tid: int) -> bool:
        """Whether this kernel thread belongs to the instance, as far as is known."""
        return kernel_tid in self._by_kernel_tid or kernel_tid == self.instance.pid

    def take_stop(self, kernel_tid: int, raw: int) -> None:
        """Take what a kernel thread of the instance, or of a child, reports.

        Raises:
            TraceeGoneError: it is gone meanwhile.
        """
        if self._children is not None and self._children.has(kernel_tid):
            self._children.take(kernel_tid, kernel_tid, raw, self._continue_elsewhere)
            return
        thread = self._by_kernel_tid.get(kernel_tid)
        if thread is None:
            if kernel_tid == self.instance.pid and self.number:
                self._main_reports(raw)
                return
            if self.number or raw & 0x7F != 0x7F:
                return  # an agent that this process started, or a thread that died before it was known
            pid = read_pid(kernel_tid)
            if pid != self.instance.pid and self._children is not None:
                self._children.take(kernel_tid, pid, raw, self._continue_elsewhere)
                return
            thread = self._adopt(Tracee(kernel_tid, self.instance.pid), kernel_tid, Doing.RUNNING)
            self._emit(ThreadBorn(kernel_tid))
        status = thread.tracee.note(raw)
        if not status.is_stop:
            self._gone(thread, status)
        elif thread.doing is Doing.IDLE:
            pass  # the program ends, and this thread of it has nothing to do any more
        elif status.event is Event.SECCOMP:
            self._called(thread)
        elif status.kind is WaitKind.SIGNAL_DELIVERY:
            self._signalled(thread, status)
        elif status.event is Event.STOP and self._continue_elsewhere(thread.tracee):
            thread.tracee.resume()
        elif (
            status.event is Event.STOP
            and thread.wanted
            and self._is_movable(thread)
            and not has_fault(thread.tracee.tid)
        ):
            self._preempted(thread, 0)
        else:
            if thread.wanted and status.event is Event.STOP:
                make_again(thread.tracee)
            thread.tracee.resume()

    def _main_reports(self, raw: int) -> None:
        """Take the end of a blank instance; nothing else can happen to its first thread."""
        if raw & 0x7F != 0x7F:
            self.ended = True

    def _adopt(self, tracee: Tracee, tid: int, doing: Doing) -> HostThread:
        thread = HostThread(tracee, tid, doing)
        self._by_kernel_tid[tracee.tid] = self._by_tid[tid] = thread
        return thread

    def _gone(self, thread: HostThread, status: WaitStatus) -> None:
        kernel_tid = thread.tracee.tid
        del self._by_kernel_tid[kernel_tid]
        self.pages.forget_thread(kernel_tid)
        self._use.forget(kernel_tid)
        if self._by_tid.get(thread.tid) is thread:
            del self._by_tid[thread.tid]
        if self.number:
            return
        self._emit(ThreadGone(kernel_tid))
        if kernel_tid == self.instance.pid:
            self.ended = True
            self._emit(ProgramExited(status.raw_end))

    def _called(self, thread: HostThread) -> None:
        tid = thread.tracee.tid
        registers = self._stopped.read_general(tid)
        number = registers[_ORIG_RAX] & _U32
        args = cast(Args, tuple([registers[place] for place in _ARGS]))
        if number == _SIGALTSTACK:
            thread.altstack = None
            thread.tracee.resume()
            return
        if number == _FUTEX and args[1] & COMMAND_MASK in WAKES:
            # Who wakes does not care how many have slept, and would wait for an answer from afar.
            self._emit(Woke(thread.tid, args[0], args[2] & _U32))
            if not args[1] & FUTEX_PRIVATE_FLAG:
                registers[_RAX], registers[_ORIG_RAX] = 0, _NO_CALL
                self._stopped.write_general(tid)
            # else the kernel, which does not look at the word then, knows of nobody, and says so
            self._resume(thread)
            return
        thread.doing = Doing.ASKING
        thread.asked = registers.tobytes()
        state = thread.asked if self.number else b""
        word = b""
        if number == _FUTEX:
            self.pages.holdings.sleeps(tid)
            if self._tells_words:
                word = self.pages.look(args[0], FUTEX_BYTES)
        self._emit(Called(thread.tid, number, args, state, registers[_RSP], word))

    def _signalled(self, thread: HostThread, status: WaitStatus) -> None:
        tracee = thread.tracee
        if thread.doing is Doing.EXECUTING and (result := gadget.find_result(tracee, status)) is not None:
            thread.doing = Doing.PARKED
            self._emit(Executed(thread.tid, result))
            return
        if thread.denied is not None and status.signo == signal.SIGSEGV:
            ptrace_api.setsiginfo(tracee.tid, encode_segfault(thread.denied))
            thread.denied = None
        elif status.signo == signal.SIGSEGV and self._strays(thread):
            thread.doing = Doing.ASKING
            self._emit(Strayed(thread.tid))
            return
        elif status.signo == signal.SIGBUS and self._has_failed(tracee):
            return
        elif status.signo == signal.SIGURG and self._is_busy(thread):
            self._preempted(thread, status.signo)
            return
        self.pages.forget_thread(tracee.tid)
        tracee.resume()

    def _strays(self, thread: HostThread) -> bool:
        """Whether a thread has touched what is not mapped here, but may be at host 0, which has the mapped files."""
        if self.number == 0 or not self._computes(thread):
            return False
        fault = decode_fault(ptrace_api.getsiginfo(thread.tracee.tid))
        return fault.is_unmapped and fault.address >= USER_START

    def _has_failed(self, tracee: Tracee) -> bool:
        """Deal with a touch of memory that fails so that calls do; return False if the signal is another's."""
        fault = decode_fault(ptrace_api.getsiginfo(tracee.tid))
        if not fault.is_failed:
            return False
        if self.pages.fails(fault.address):
            ptrace_api.setsiginfo(tracee.tid, encode_segfault(fault.address))
            tracee.resume_with(signal.SIGSEGV)
        else:  # it does not fail any more
            tracee.resume(deliver=False)
        return True

    def _preempted(self, thread: HostThread, signo: int) -> None:
        thread.doing, thread.wanted = Doing.ASKING, False
        thread.used = self._use.nanoseconds(thread.tracee.tid)
        registers = thread.tracee.read_registers()
        self._emit(Preempted(thread.tid, signo, registers.g, registers.sp))

    def _computes(self, thread: HostThread) -> bool:
        """Whether a stopped thread is in the midst of the program's own code."""
        if thread.doing is not Doing.RUNNING:
            return False
        registers = thread.tracee.read_registers()
        return registers["orig_rax"] == _NO_CALL and not self.instance.is_in_routines(registers.pc)

    def _is_movable(self, thread: HostThread) -> bool:
        """Whether a stopped thread computes what other hosts can: a library's code is at host 0 alone."""
        return self._computes(thread) and (
            self.number != 0 or self.instance.is_own_code(thread.tracee.read_registers().pc)
        )

    def _is_busy(self, thread: HostThread) -> bool:
        """Whether a policy is to be asked about a stopped thread. One that got little done is better left alone: all
        that it waits for where it goes would be in vain.
        """
        if self.pages.is_waiting(thread.tracee.tid) or not self._is_movable(thread):
            return False
        return self._has_computed(thread)

    def _has_computed(self, thread: HostThread) -> bool:
        return self._use.nanoseconds(thread.tracee.tid) - thread.used >= _BUSY_NS

    def _continue_elsewhere(self, tracee: Tracee) -> bool:
        """Have a thread or child that a thread elsewhere has created begin where that one was.

        Returns whether it is one.
        """
        registers = tracee.read_registers()
        if registers.pc != AFTER_SYSCALL:
            return False
        pc = self._births.pop(registers.sp, None)
        if pc is not None:
            registers.pc = pc
            tracee.write_registers(registers)
        return True
