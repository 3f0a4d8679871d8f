"""A page of our own in a tracee, from which its threads make calls for us quickly and without a stop at each end.

    GADGET            syscall; int3       a call made from here is known to the filter by its place
    GADGET + 4096     scratch             what such a call points to

`inject` is for threads that are stopped anywhere, a seccomp-stop included; `remote_syscall`, which needs no page but
four stops, puts the page in. Both are for the thread that traces.
"""

import signal
from typing import NamedTuple

from stepping import ptrace_api
from stepping.errors import SteppingError, TraceeGoneError
from stepping.maps import PAGE_BYTES
from stepping.ptrace_api import RegisterSet
from stepping.registers import Registers
from stepping.remote_syscall import remote_syscall
from stepping.syscalls import SYSCALLS
from stepping.tracee import Resume, Tracee, read_pending
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import Event, WaitKind, WaitStatus

#: Where the page is, in every process: far from what Go, the kernel and C libraries choose.
GADGET = 0x6000_0000_0000
SCRATCH = GADGET + PAGE_BYTES
#: The program counter that the filter and new threads see: after the syscall instruction.
AFTER_SYSCALL = GADGET + 2
_AFTER_TRAP = GADGET + 3
_CODE = b"\x0f\x05\xcc\xcc"

_PROT_ALL, _PRIVATE_ANONYMOUS_FIXED = 7, 0x100022
#: What a thread that made a call for us, or became another, is left in: no signal waits to be delivered.
_STOPPED = WaitStatus(WaitKind.EVENT, event=Event.STOP)
_ALL_SIGNALS = (1 << 64) - 1
_NO_CALL = (1 << 64) - 1
_XSTATE_BYTES = 16384
_ALTSTACK_BYTES = 24
_SIGSET_BYTES, _TIMESPEC_BYTES = 8, 16
#: A stack pointer that lies on no signal stack, for calls that ask.
_NEUTRAL_SP = SCRATCH + PAGE_BYTES // 2


class ThreadState(NamedTuple):
    """All that makes a thread, as the kernel keeps it; its memory aside.

    general, extended: register sets; mask: its blocked signals; altstack: its struct stack_t.
    """

    general: bytes
    extended: bytes
    mask: int
    altstack: bytes


def install(tracee: Tracee, memory: TraceeMemory) -> None:
    """Put the page into the process of *tracee*, which is stopped between calls.

    Raises:
        SteppingError: the place is taken, or the process gone.
    """
    with remote_syscall(tracee) as sys:
        sys.call("mmap", GADGET, 2 * PAGE_BYTES, _PROT_ALL, _PRIVATE_ANONYMOUS_FIXED, -1, 0)
    memory.write(GADGET, _CODE)


def inject(tracee: Tracee, name: str, *args: int) -> int:
    """Have the stopped *tracee* make call *name*; return its result, negative for an error. It stays stopped.

    Its registers are as before afterwards; a call that it was about to make is not made. Pointers must lead to
    memory that is there (`SCRATCH`). A clone's child reports itself.

    Raises:
        TraceeGoneError: it died.
    """
    saved = tracee.read_registers()
    mask = ptrace_api.getsigmask(tracee.tid)
    ptrace_api.setsigmask(tracee.tid, _ALL_SIGNALS)
    result = _call(tracee, saved.copy(), name, args)
    if tracee.layout.pending is not None:
        saved[tracee.layout.pending] = _NO_CALL
    tracee.write_registers(saved)
    ptrace_api.setsigmask(tracee.tid, mask)
    return result


def begin(tracee: Tracee, registers: bytes) -> None:
    """Let the stopped *tracee* start the call that *registers*, a general register set, is about to make.

    It stops when the call has returned; `find_result` tells that stop.
    """
    own = tracee.read_registers()
    values = type(own).decode(tracee.layout, registers)
    number = values["orig_rax"]
    values["orig_rax"] = _NO_CALL
    values["rax"] = number
    values.pc = GADGET
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        values[name] = own[name]
    tracee.write_registers(values)
    ptrace_api.setsigmask(tracee.tid, _ALL_SIGNALS)
    tracee.resume(deliver=False)


def find_result(tracee: Tracee, status: WaitStatus) -> int | None:
    """Return what a call from the page has returned, if *status* is the stop after it; else None."""
    if status.kind is not WaitKind.SIGNAL_DELIVERY or status.signo != signal.SIGTRAP:
        return None
    registers = tracee.read_registers()
    return registers.result if registers.pc == _AFTER_TRAP else None


def clone_thread(tracee: Tracee, flags: int) -> Tracee:
    """Have *tracee* create a thread; return it, stopped before its first instruction (at AFTER_SYSCALL)."""
    tid = inject(tracee, "clone", flags)
    if tid <= 0:
        raise SteppingError(f"cannot create a thread in process {tracee.pid}: error {-tid}")
    child = Tracee(tid, tracee.pid)
    while not child.is_stopped:
        child.wait()
    return child


def capture(tracee: Tracee, memory: TraceeMemory, altstack: bytes | None) -> ThreadState:
    """Return the state of a stopped thread that is in user code or about to make a call (which it then does not).

    If it stopped for a signal, it does not get that any more.
    altstack: its signal stack, if that is known; to ask costs more than all else.
    """
    if altstack is None:
        inject(tracee, "sigaltstack", 0, SCRATCH)
        altstack = memory.read(SCRATCH, _ALTSTACK_BYTES)
    tracee.status = _STOPPED
    return ThreadState(
        ptrace_api.getregset(tracee.tid),
        ptrace_api.getregset(tracee.tid, RegisterSet.X86_XSTATE, _XSTATE_BYTES),
        ptrace_api.getsigmask(tracee.tid),
        altstack,
    )


def take_pending(tracee: Tracee, memory: TraceeMemory) -> tuple[int, ...]:
    """Return the signals that wait for this stopped thread alone, and have them wait no more."""
    waiting = read_pending(tracee.tid)
    taken = []
    for signo in range(1, waiting.bit_length() + 1):
        if waiting >> (signo - 1) & 1:
            memory.write(
                SCRATCH, (1 << (signo - 1)).to_bytes(_SIGSET_BYTES, "little") + bytes(_TIMESPEC_BYTES)
            )
            if inject(tracee, "rt_sigtimedwait", SCRATCH, 0, SCRATCH + _SIGSET_BYTES, _SIGSET_BYTES) > 0:
                taken.append(signo)
    return tuple(taken)


def restore(
    tracee: Tracee, memory: TraceeMemory, state: ThreadState, result: int | None, altstack: bytes | None
) -> None:
    """Give a stopped thread another's *state*. result: what the call that it was about to make returns, if any.

    altstack: the signal stack that it has, if that is known.
    """
    if state.altstack != altstack:
        memory.write(SCRATCH, state.altstack)
        inject(tracee, "sigaltstack", SCRATCH, 0)
    tracee.status = _STOPPED
    own = tracee.read_registers()
    registers = type(own).decode(tracee.layout, state.general)
    if result is not None:
        registers["rax"] = result
    registers["orig_rax"] = _NO_CALL
    tracee.write_registers(registers)
    ptrace_api.setregset(tracee.tid, state.extended, RegisterSet.X86_XSTATE)
    ptrace_api.setsigmask(tracee.tid, state.mask)


def _call(tracee: Tracee, registers: Registers, name: str, args: tuple[int, ...]) -> int:
    registers.prepare_syscall(GADGET, SYSCALLS[name].numbers[tracee.layout.arch], args)
    registers.sp = _NEUTRAL_SP
    tracee.write_registers(registers)
    tracee.resume(deliver=False)
    while True:
        status = tracee.wait()
        if status is None or not status.is_stop:
            raise TraceeGoneError(tracee.tid)
        result = find_result(tracee, status)
        if result is not None:
            tracee.status = _STOPPED
            return result
        if status.kind is WaitKind.SIGNAL_DELIVERY and status.signo != signal.SIGSTOP:
            raise SteppingError(f"thread {tracee.tid} got {status} in a call made for us")
        if status.event not in (Event.STOP, Event.CLONE, None) and status.kind is WaitKind.EVENT:
            raise SteppingError(f"thread {tracee.tid} reports {status} in a call made for us")
        tracee.resume(Resume.FREE)
