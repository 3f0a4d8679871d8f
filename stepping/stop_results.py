"""What a stop of a tracee means to whoever runs it: a report of the kernel's as a `RunResult`.

Source: ptrace(2), sigaction(2); arch/x86/kernel/traps.c, ptrace.c, arch/arm64/kernel/debug-monitors.c.
"""

import signal

from stepping import ptrace_api
from stepping.breakpoints import Breakpoints
from stepping.errors import MemoryFaultError
from stepping.executor import (
    AboutToCall,
    Access,
    CannotExecute,
    Execed,
    Exited,
    Interrupted,
    MemoryFault,
    NewTask,
    Reached,
    RunResult,
    Signalled,
)
from stepping.stops import SyscallEntry, decode_siginfo, decode_syscall_info
from stepping.syscalls.model import Arch
from stepping.tracee import Tracee
from stepping.tracee_group import NEW_TASK_EVENTS
from stepping.wait_status import Event, WaitKind, WaitStatus

#: The longest instruction of any architecture.
MAX_INSTRUCTION_BYTES = 15

#: siginfo's code of a signal that says no more; of a single step's; of one that led into a signal handler.
_SI_KERNEL, _TRAP_TRACE, _TRAP_HANDLER = 0x80, 2, signal.SIGTRAP
#: On amd64, of a step that has led into a syscall, at its end: the kernel lets threads make interrupted ones again.
_TRAP_BRKPT = 1
#: Of a breakpoint of the processor's, by which `block_steps` lets threads execute blocks.
_TRAP_HWBKPT = 4
_STEP_CODES = {
    "amd64": (_TRAP_TRACE, _TRAP_HANDLER, _TRAP_BRKPT, _TRAP_HWBKPT),
    "arm64": (_TRAP_TRACE, _TRAP_HANDLER),
}


def result_of_stop(tracee: Tracee, status: WaitStatus, breakpoints: Breakpoints) -> RunResult | None:
    """Return what a report says; None if it says nothing that a run ends for (the end of a syscall, a step).

    A breakpoint that was hit is taken (`Breakpoints.take_hit`).

    Raises:
        TraceeGoneError: the tracee was killed meanwhile.
    """
    match status.kind:
        case WaitKind.EXITED | WaitKind.KILLED:
            return Exited(status)
        case WaitKind.GROUP:
            return Interrupted(tracee.read_registers().pc, status.signo)
        case WaitKind.SYSCALL:
            return _about_to_call(tracee)
        case WaitKind.EVENT:
            return _result_of_event(tracee, status)
    return _result_of_signal(tracee, status.signo, breakpoints)


def is_step_trap(tracee: Tracee, status: WaitStatus) -> bool:
    """Whether a report is just that of a single step: over an instruction or a call, or into a signal handler."""
    if status.kind is not WaitKind.SIGNAL_DELIVERY or status.signo != signal.SIGTRAP:
        return False
    return is_processors_trap(tracee.tid, tracee.layout.arch)


def is_processors_trap(tid: int, arch: Arch) -> bool:
    """Whether the SIGTRAP that a thread is stopped for is that of a step or of a breakpoint of the processor's."""
    return decode_siginfo(ptrace_api.getsiginfo(tid)).code in _STEP_CODES[arch]


def _result_of_event(tracee: Tracee, status: WaitStatus) -> RunResult | None:
    if status.event is Event.STOP:
        return Interrupted(tracee.read_registers().pc)
    if status.event in NEW_TASK_EVENTS:
        return NewTask(tracee.read_registers().pc, ptrace_api.geteventmsg(tracee.tid))
    if status.event is Event.EXEC:
        return Execed(tracee.read_registers().pc, ptrace_api.geteventmsg(tracee.tid))
    if status.event is Event.SECCOMP:
        return _about_to_call(tracee)
    return None


def _about_to_call(tracee: Tracee) -> RunResult | None:
    info = decode_syscall_info(ptrace_api.get_syscall_info(tracee.tid))
    if not isinstance(info, SyscallEntry):
        return None
    pc = tracee.read_registers().pc - len(tracee.layout.syscall_instruction)
    return AboutToCall(pc, info.nr, info.args)


def _result_of_signal(tracee: Tracee, signo: int, breakpoints: Breakpoints) -> RunResult:
    hit = breakpoints.take_hit(tracee)
    if hit is not None:
        return Reached(hit)
    pc = tracee.read_registers().pc
    info = decode_siginfo(ptrace_api.getsiginfo(tracee.tid))
    if info.code <= 0:  # another process sent it
        return Signalled(pc, signo)
    if signo in (signal.SIGSEGV, signal.SIGBUS):
        access: Access | None = "execute" if info.address == pc else None
        return MemoryFault(pc, info.address if info.code != _SI_KERNEL else 0, access, signo)
    if signo == signal.SIGILL:
        return CannotExecute(pc, read_code(breakpoints, pc), "the processor does not know it", signo)
    return Signalled(pc, signo)


def read_code(breakpoints: Breakpoints, pc: int, size: int = MAX_INSTRUCTION_BYTES) -> bytes:
    """Return *size* of the program's own bytes of the instructions from *pc* on; fewer where memory ends."""
    for available in (size, 0x1000 - pc % 0x1000):
        try:
            return breakpoints.read(pc, min(size, available))
        except MemoryFaultError:
            continue
    return b""
