"""Starts a program, under a seccomp listener if it is given a filter.

The child installs the filter on itself and then makes no call that a filter could stop but execve, so it cannot
send the listener's descriptor: it leaves the number in a shared page, and the parent takes the descriptor with
pidfd_getfd(2). A pipe that closes on exec tells the parent that the program runs.

A program that is to be traced is seized before it does anything, and stopped where its exec returns.

The program dies with the thread that launched it (PR_SET_PDEATHSIG): a program whose listener is gone would see
its served calls fail, which no program expects. Launch from a thread that lives as long as the session.
"""

import ctypes
import errno
import mmap
import os
import select
import signal
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from stepping import seccomp
from stepping.dispositions import restore_ignored_signals
from stepping.errors import SeccompRefusedError, SteppingError
from stepping.listener import Listener

if TYPE_CHECKING:
    from stepping.tracee_group import TraceeGroup

_PR_SET_PDEATHSIG = 1
_PTRACE_TRACEME = 0
_NR_PIDFD_GETFD = 438

# The shared page: the child's state, then a number that belongs to it.
_STARTING, _FILTERED, _TAKEN, _REFUSED, _EXEC_FAILED = range(5)
_PAGE = struct.Struct("=qq")


class ExecError(SteppingError):
    """The kernel does not execute the program. `errno` says why."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(f"cannot execute {path}: {os.strerror(number)}")
        self.path = path
        self.errno = number


@dataclass(frozen=True, slots=True)
class Program:
    """What to start and how.

    path: the file; argv: its arguments with argv[0]; env: ``NAME=VALUE`` strings; bpf: a filter from
    `seccomp.assemble`, or None; stdio: descriptors to become 0, 1 and 2; new_session: call setsid(2); new_group: call
    setpgid(2), so that the program can be stopped (an orphaned group cannot: setpgid(2)); without_vdso: make clock
    reads real syscalls; blocked: the signals that it starts with blocked; traced: trace its threads by the calling
    thread.
    """

    path: str
    argv: list[bytes]
    env: Sequence[bytes]
    bpf: bytes | None = None
    stdio: tuple[int, int, int] = (0, 1, 2)
    new_session: bool = False
    new_group: bool = False
    without_vdso: bool = False
    blocked: Collection[int] = ()
    traced: bool = False


@dataclass(frozen=True, slots=True)
class Launched:
    """A running program, a child of this process. pidfd: readable when it has exited.

    tracees: if it is traced: its one thread, stopped before its first instruction.
    """

    pid: int
    pidfd: int
    listener: Listener | None
    tracees: "TraceeGroup | None" = None


def launch(program: Program) -> Launched:
    """Start *program*; return when its first instruction is about to run.

    Raises:
        ExecError: the kernel refuses to execute the file.
        SeccompRefusedError: the kernel refuses the filter.
    """
    page = mmap.mmap(-1, _PAGE.size)
    exec_pipe, exec_pipe_child = os.pipe()
    go, go_child = os.pipe() if program.traced else (-1, -1)
    pid = os.fork()
    if pid == 0:
        if program.traced:
            os.close(go_child)
        _become(program, page, go)
    os.close(exec_pipe_child)
    pidfd = os.pidfd_open(pid)
    listener = None
    tracees = None
    try:
        if program.traced:
            os.close(go)
            tracees = _seize(pid, go_child)
        if program.bpf is not None:
            listener = Listener(_take_listener(page, pidfd))
        _await_exec(program, page, listener, pid, exec_pipe)
        if tracees is not None:
            _run_to_first_instruction(tracees, without_vdso=program.without_vdso)
        elif program.without_vdso:
            from stepping.vdso import hide_vdso

            hide_vdso(pid)
    except BaseException:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
        if listener is not None:
            listener.close()
        raise
    finally:
        os.close(exec_pipe)
        page.close()
    return Launched(pid, pidfd, listener, tracees)


def _seize(pid: int, go: int) -> "TraceeGroup":
    """Trace the child, which waits for it, and let it go on."""
    from stepping.ptrace_api import FOLLOW_THREADS, Option
    from stepping.tracee import Tracee
    from stepping.tracee_group import TraceeGroup

    try:
        tracees = TraceeGroup(pid)
        tracees.add(Tracee.seize(pid, pid, FOLLOW_THREADS | Option.EXITKILL))
        os.write(go, b"g")
    finally:
        os.close(go)
    return tracees


def _run_to_first_instruction(tracees: "TraceeGroup", *, without_vdso: bool) -> None:
    """Let the child, which executes the program, come back from its exec: there it can be made to call the kernel."""
    from stepping.tracee_launch import run_to_first_instruction

    run_to_first_instruction(tracees)
    if without_vdso:
        from stepping.vdso import take_vdso_out

        take_vdso_out(tracees.pid)


def _take_listener(page: mmap.mmap, pidfd: int) -> int:
    """Wait until the child has its filter; return the listener's descriptor as this process's own."""
    ended = False
    while True:
        state, number = _PAGE.unpack(page[:])
        if state == _FILTERED:
            break
        if state == _REFUSED:
            raise SeccompRefusedError(number)
        if ended:  # and it had nothing more to say before
            raise SeccompRefusedError(errno.ECANCELED)
        ended = bool(select.select([pidfd], [], [], 0.0001)[0])
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_NR_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        raise SeccompRefusedError(ctypes.get_errno())
    page[:] = _PAGE.pack(_TAKEN, 0)
    return int(fd)


def _await_exec(
    program: Program, page: mmap.mmap, listener: Listener | None, pid: int, exec_pipe: int
) -> None:
    """Let the child's own execve pass the filter; return once it has happened."""
    watched = [exec_pipe] if listener is None else [exec_pipe, listener.fileno()]
    while True:
        readable = select.select(watched, [], [])[0]
        if exec_pipe in readable:
            break
        # Nothing but the child's execve can be here: the program has not run yet.
        notification = listener.receive() if listener is not None else None
        if listener is not None and notification is not None:
            listener.proceed(notification.id)
    state, number = _PAGE.unpack(page[:])
    if state == _EXEC_FAILED:
        raise ExecError(program.path, number)


def _become(program: Program, page: mmap.mmap, go: int) -> NoReturn:
    """In the child: wait at *go* to be seized, if it is to be, set it up and execute the program."""
    try:
        if program.traced and os.read(go, 1) != b"g":
            os._exit(127)
        restore_ignored_signals()
        _put_in_place(program.stdio)
        if program.new_session:
            os.setsid()
        if program.new_group:
            os.setpgid(0, 0)
        libc = ctypes.CDLL(None)
        if not program.traced:  # then its tracer's end is its own (PTRACE_O_EXITKILL), unless that lets it go
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if program.without_vdso and not program.traced:
            libc.ptrace(_PTRACE_TRACEME, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, program.blocked)
        if program.bpf is not None:
            _install_filter(program.bpf, page)
        os.execve(program.path, program.argv, _environment(program.env))
    except OSError as error:
        page[:] = _PAGE.pack(_EXEC_FAILED, error.errno or 0)
    finally:
        os._exit(127)


def _put_in_place(stdio: tuple[int, int, int]) -> None:
    """Make the descriptors *stdio* 0, 1 and 2, whatever stands there now."""
    moved = {target: os.dup(source) for target, source in enumerate(stdio) if target != source}
    for target, source in moved.items():
        os.dup2(source, target)


def _install_filter(bpf: bytes, page: mmap.mmap) -> None:
    try:
        fd = seccomp.install(bpf, listener=True)
    except SeccompRefusedError as error:
        page[:] = _PAGE.pack(_REFUSED, error.errno)
        os._exit(127)
    page[:] = _PAGE.pack(_FILTERED, fd)
    while _PAGE.unpack(page[:])[0] != _TAKEN:
        os.sched_yield()


def _environment(env: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(entry.partition(b"=")[::2] for entry in env)
