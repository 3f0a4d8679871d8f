"""Starts a program as a tracee, from before its exec on.

The child waits until it has been seized, so there is no moment at which it runs untraced; then it installs its
seccomp filter, if any, and executes the program. It dies with the thread that traces it (PTRACE_O_EXITKILL): a
filter that traces would fail every call of a program that nobody traces.
"""

import contextlib
import os
import signal
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from stepping import seccomp
from stepping.errors import SeccompRefusedError, TraceeGoneError
from stepping.launch import ExecError, Program
from stepping.ptrace_api import Option
from stepping.seccomp import Rule, Verdict, assemble
from stepping.stops import AUDIT_ARCHES
from stepping.syscalls.model import Arch, OnlyIf, Syscall
from stepping.tracee import Resume, Tracee
from stepping.tracee_group import TraceeGroup
from stepping.wait_status import Event, WaitKind

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_NOT_LESS, _RETURN = 0x20, 0x15, 0x35, 0x06
_NR_OFFSET, _ARCH_OFFSET, _X32_BIT = 0, 4, 0x4000_0000

_FAILURE = struct.Struct("=Bi")
_FILTER_REFUSED, _EXEC_FAILED = 1, 2


@dataclass(frozen=True, slots=True)
class PendingExec:
    """A child that is seized and about to execute *program*; its tracer lets it run up to its exec event.

    failure_pipe: holds a report if it exits instead; `raise_failure` reads it.
    """

    program: Program
    tracee: Tracee
    failure_pipe: int

    def raise_failure(self) -> NoReturn:
        """Raise what made the child exit before it ran the program.

        Raises:
            ExecError: the kernel refuses to execute the file.
            SeccompRefusedError: the kernel refuses the filter.
            TraceeGoneError: something killed it.
        """
        report = os.read(self.failure_pipe, _FAILURE.size)
        self.close()
        if len(report) == _FAILURE.size:
            kind, number = _FAILURE.unpack(report)
            if kind == _EXEC_FAILED:
                raise ExecError(self.program.path, number)
            raise SeccompRefusedError(number)
        raise TraceeGoneError(self.tracee.tid)

    def close(self) -> None:
        """Give up the pipe, once the program runs."""
        os.close(self.failure_pipe)


def tracing_filter(rows: Iterable[Syscall], conditions: Mapping[str, OnlyIf], arch: Arch) -> bytes:
    """Return the filter that stops a program at the calls *rows*; conditions: by name, with which arguments only.

    Calls of another ABI (32-bit children, x32) pass unseen. A filter that serves calls must deny them, and
    `seccomp.assemble` does; one that watches must not.
    """
    allow = (_RETURN, 0, 0, Verdict.ALLOW.value)
    head = (
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JUMP_IF_EQUAL, 1, 0, AUDIT_ARCHES[arch]),
        allow,
        (_LOAD, 0, 0, _NR_OFFSET),
        (_JUMP_IF_NOT_LESS, 0, 1, _X32_BIT),
        allow,
    )
    rules = [Rule(row.numbers[arch], Verdict.TRACE, conditions.get(row.name)) for row in rows]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in head) + assemble(rules, arch)


def fork_tracee(program: Program, options: Option, *, interrupted: bool = False) -> PendingExec:
    """Fork a child that will execute *program*, seized by this thread with *options* and EXITKILL.

    interrupted: its first report is the stop of an `interrupt`, before it does anything.

    Raises:
        PtraceRefusedError: the kernel does not allow it.
    """
    go, go_child = os.pipe()
    failure, failure_child = os.pipe()
    pid = os.fork()
    if pid == 0:
        # The parent's end too: as long as it is open here, a parent that dies would not be noticed.
        os.close(go_child)
        _become(program, go, failure_child)
    os.close(go)
    os.close(failure_child)
    try:
        tracee = Tracee.seize(pid, pid, options | Option.EXITKILL)
        if interrupted:
            tracee.interrupt()
        os.write(go_child, b"g")
    except BaseException:
        os.close(failure)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(go_child)
    return PendingExec(program, tracee, failure)


def launch_stopped(program: Program, options: Option) -> TraceeGroup:
    """Start *program* and return its tracees, stopped at its first instruction.

    They die with this thread. The thread has returned from its exec, so it can be made to call the kernel.

    Raises:
        ExecError, SeccompRefusedError, PtraceRefusedError: the kernel refuses.
    """
    pending = fork_tracee(program, options)
    group = TraceeGroup(pending.tracee.tid)
    group.add(pending.tracee)
    try:
        run_to_first_instruction(group)
    except TraceeGoneError:
        pending.raise_failure()
    pending.close()
    return group


def run_to_first_instruction(group: TraceeGroup) -> None:
    """Let the one thread of *group* execute its program and stop where it returns from its exec.

    There it has run nothing of the program yet, and can be made to call the kernel.

    Raises:
        TraceeGoneError: it has exited instead.
    """
    tracee = group.leader
    if tracee is None:
        raise TraceeGoneError(group.pid)
    executed = False
    while True:
        status = tracee.wait()  # for this one alone: others of this thread may have something to report too
        if status is None or not status.is_stop:
            raise TraceeGoneError(group.pid)
        if status.kind is WaitKind.SYSCALL and executed:
            return
        if status.event is Event.EXEC:
            executed = True
        tracee.resume(Resume.SYSCALL if executed else Resume.FREE)


def _become(program: Program, go: int, failure: int) -> NoReturn:
    """In the child: wait to be seized, then become the program."""
    try:
        if os.read(go, 1) != b"g":
            os._exit(127)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, programs expect them
            signal.signal(number, signal.SIG_DFL)
        for target, source in enumerate(program.stdio):
            if target != source:
                os.dup2(source, target)
            else:
                os.set_inheritable(target, True)
        if program.new_session:
            os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, program.blocked)
        environment = dict(entry.partition(b"=")[::2] for entry in program.env)
        if program.bpf is not None:
            seccomp.install(program.bpf, listener=False)
        os.execve(program.path, program.argv, environment)
    except SeccompRefusedError as error:
        os.write(failure, _FAILURE.pack(_FILTER_REFUSED, error.errno))
    except OSError as error:
        os.write(failure, _FAILURE.pack(_EXEC_FAILED, error.errno or 0))
    finally:
        os._exit(127)
