"""Syscalls that a stopped tracee is made to execute, and its state put back as if nothing had been.

    with remote_syscall(tracee) as sys:
        address = sys.call("mmap", 0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)

Within the scope all signals but SIGKILL and SIGSTOP are blocked, so none is lost or delivered half way; at its
end, after errors too, registers and signal mask are restored. An interrupted call that the kernel was about to
restart is still restarted: the registers that say so are among those restored.

The calls pass the program's own seccomp filter, if it has one: they may fail, and one that a listener answers
needs that listener to be served by another thread than this.

Source: ptrace(2); arch/x86/kernel/signal.c (restarts).
"""

import contextlib
import errno
import os
import signal
from collections.abc import Iterator

from stepping import ptrace_api
from stepping.errors import MemoryFaultError, SteppingError, TraceeGoneError
from stepping.maps import read_maps
from stepping.registers import RegisterLayout, Registers
from stepping.stops import SyscallEntry, decode_syscall_info
from stepping.syscalls.table import SYSCALLS
from stepping.tracee import Tracee
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import Event, WaitKind, WaitStatus

_ALL_SIGNALS = (1 << 64) - 1
_MAX_ERRNO = 4095


class RemoteSyscallError(SteppingError):
    """A call made on behalf of a tracee failed. `name`, `errno`."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(
            f"the program cannot be prepared: its {name} fails with "
            f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
        )
        self.name = name
        self.errno = number


class RemoteSyscalls:
    """What `remote_syscall` gives; valid within its scope."""

    def __init__(self, tracee: Tracee, saved: Registers, instruction: int) -> None:
        self._tracee = tracee
        self._saved = saved
        self._instruction = instruction

    def call(self, name: str, *args: int) -> int:
        """Execute syscall *name*; return its result (0 to 2**64 - 1, negative numbers never).

        args: up to six numbers; negative ones as two's complement; missing ones are 0.

        Raises:
            RemoteSyscallError: it failed.
            TraceeGoneError: the thread died.
        """
        registers = self._saved.copy()
        registers.prepare_syscall(self._instruction, SYSCALLS[name].numbers[self._tracee.layout.arch], args)
        self._tracee.write_registers(registers)
        _run_one_syscall(self._tracee)
        result = self._tracee.read_registers().result
        if -_MAX_ERRNO <= result < 0:
            raise RemoteSyscallError(name, -result)
        return result & _ALL_SIGNALS


@contextlib.contextmanager
def remote_syscall(tracee: Tracee, instruction: int | None = None) -> Iterator[RemoteSyscalls]:
    """Make *tracee* execute syscalls within a ``with`` block.

    tracee: stopped, and not inside a call (not at its entry, its seccomp-stop, or a clone or exec event).
    instruction: address of a syscall instruction in its memory; by default one is looked for.
    The signal that it was stopped for is delivered when it is next resumed.

    Raises:
        SteppingError: it is inside a call, or no syscall instruction is mapped.
        TraceeGoneError: it died.
    """
    _check_between_calls(tracee)
    if instruction is None:
        instruction = find_syscall_instruction(tracee.pid, tracee.layout)
    saved = tracee.read_registers()
    mask = ptrace_api.getsigmask(tracee.tid)
    held = tracee.hold_signal()
    try:
        ptrace_api.setsigmask(tracee.tid, _ALL_SIGNALS)
        yield RemoteSyscalls(tracee, saved, instruction)
    finally:
        with contextlib.suppress(TraceeGoneError):
            _return_to_event_stop(tracee, held)
            tracee.write_registers(saved)
            ptrace_api.setsigmask(tracee.tid, mask)


def can_call(tracee: Tracee) -> bool:
    """Whether `remote_syscall` can be used with *tracee* now: it is stopped, and not inside a call."""
    status = tracee.status
    if status is None or not status.is_stop:
        return False
    if status.kind is WaitKind.EVENT:
        return status.event is Event.STOP
    if status.kind is WaitKind.SYSCALL:
        info = decode_syscall_info(ptrace_api.get_syscall_info(tracee.tid))
        return not isinstance(info, SyscallEntry)
    return True


def find_syscall_instruction(pid: int, layout: RegisterLayout) -> int:
    """Return the address of a syscall instruction in process *pid*: the vDSO's if it has one.

    Raises:
        SteppingError: there is none in any executable mapping.
    """
    maps = [vma for vma in read_maps(pid) if vma.is_executable and vma.path != "[vsyscall]"]
    maps.sort(key=lambda vma: vma.path != "[vdso]")
    memory = _open_memory(pid)
    try:
        for vma in maps:
            try:
                offset = memory.read(vma.start, vma.size_bytes).find(layout.syscall_instruction)
            except MemoryFaultError:
                continue
            if offset >= 0:
                return vma.start + offset
    finally:
        memory.close()
    raise SteppingError(f"process {pid} has no syscall instruction in its code")


def _open_memory(pid: int) -> TraceeMemory:
    try:
        return TraceeMemory(pid)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(pid) from error


def _check_between_calls(tracee: Tracee) -> None:
    if not tracee.is_stopped:
        raise SteppingError(f"thread {tracee.tid} is not stopped")
    if not can_call(tracee):
        raise SteppingError(
            f"thread {tracee.tid} is inside a call ({tracee.status}); step it out of it first"
        )


def _run_one_syscall(tracee: Tracee) -> None:
    """Resume the tracee at a syscall instruction and wait until the call has returned."""
    entered = False
    signo = 0
    while True:
        ptrace_api.syscall(tracee.tid, signo)
        signo = 0
        status = tracee.wait()
        if status is None or not status.is_stop:
            raise TraceeGoneError(tracee.tid)
        if status.kind is WaitKind.SYSCALL:
            if entered:
                return
            entered = True
        else:
            signo = _stopping_signal(tracee, status)


def _return_to_event_stop(tracee: Tracee, held: int) -> None:
    """Bring the tracee from a syscall's exit-stop to an event stop, and queue signal *held*, if not 0, again.

    The kernel looks at the registers for a call to restart only where it handles signals, an event stop is
    there and a syscall-stop is not. And a signal can be sent from a syscall-stop, not from an event stop.
    """
    if tracee.status is None or tracee.status.kind is not WaitKind.SYSCALL:
        return
    tracee.interrupt()
    while True:
        ptrace_api.cont(tracee.tid, held)
        held = 0
        status = tracee.wait()
        if status is None or not status.is_stop:
            raise TraceeGoneError(tracee.tid)
        if status.kind is WaitKind.GROUP or status.event is Event.STOP:
            return
        held = _stopping_signal(tracee, status)


def _stopping_signal(tracee: Tracee, status: WaitStatus) -> int:
    """Return SIGSTOP if the tracee is about to get it: it cannot be blocked, and takes effect at the end."""
    if status.kind is not WaitKind.SIGNAL_DELIVERY:
        return 0
    if status.signo != signal.SIGSTOP:
        raise SteppingError(f"thread {tracee.tid} got {status} where a syscall was to be made")
    return status.signo
