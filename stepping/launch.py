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

from goabi.elf_header import ElfHeader
from stepping import seccomp
from stepping.dispositions import restore_ignored_signals
from stepping.errors import PtraceRefusedError, SeccompRefusedError, SteppingError
from stepping.listener import Listener

if TYPE_CHECKING:
    from stepping.direct_calls import Sites
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
    thread; direct: let it make some calls itself.
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
    direct: "Direct | None" = None

    @property
    def is_seized(self) -> bool:
        """Whether it is traced when it begins."""
        return self.traced or self.direct is not None


@dataclass(frozen=True, slots=True)
class Direct:
    """How a program makes calls itself, see `stepping.direct_calls`. given_pass: the pass; sites: of `find_sites`."""

    given_pass: int
    sites: "Sites"
    header: ElfHeader


@dataclass(frozen=True, slots=True)
class Launched:
    """A running program, a child of this process. pidfd: readable when it has exited.

    tracees: if it is traced: its one thread, stopped before its first instruction. direct_table: the address of its
    table of descriptors, if it can make calls itself, else 0.
    """

    pid: int
    pidfd: int
    listener: Listener | None
    tracees: "TraceeGroup | None" = None
    direct_table: int = 0


def launch(program: Program) -> Launched:
    """Start *program*; return when its first instruction is about to run.

    Raises:
        ExecError: the kernel refuses to execute the file.
        SeccompRefusedError: the kernel refuses the filter.
    """
    page = mmap.mmap(-1, _PAGE.size)
    exec_pipe, exec_pipe_child = os.pipe()
    go, go_child = os.pipe() if program.is_seized else (-1, -1)
    pid = os.fork()
    if pid == 0:
        if program.is_seized:
            os.close(go_child)
        _become(program, page, go)
    os.close(exec_pipe_child)
    pidfd = os.pidfd_open(pid)
    listener = None
    tracees = None
    direct_table = 0
    try:
        if program.is_seized:
            os.close(go)
            try:
                tracees = _seize(pid, go_child)
            except PtraceRefusedError:
                if program.traced or program.without_vdso:
                    raise
        if program.bpf is not None:
            listener = Listener(_take_listener(page, pidfd))
        _await_exec(program, page, listener, pid, exec_pipe)
        if tracees is not None:
            _run_to_first_instruction(tracees, without_vdso=program.without_vdso)
            if program.direct is not None:
                direct_table = _install_direct(tracees, program.direct)
            if not program.traced:
                tracees.detach_all()
                tracees = None
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
    return Launched(pid, pidfd, listener, tracees, direct_table)


def _seize(pid: int, go: int) -> "TraceeGroup":
    """Trace the child, which waits for it, and let it go on."""
    from stepping.ptrace_api import FOLLOW_THREADS, Option
    from stepping.tracee import Tracee
    from stepping.tracee_group import TraceeGroup

    try:
        tracees = TraceeGroup(pid)
        tracees.add(Tracee.seize(pid, pid, FOLLOW_THREADS | Option.EXITKILL))
    finally:
        os.write(go, b"g")
        os.close(go)
    return tracees


def _run_to_first_instruction(tracees: "TraceeGroup", *, without_vdso: bool) -> None:
    """Let the child, which executes the program, come back from its exec: there it can be made to call the kernel."""
    from stepping.tracee_launch import run_to_first_instruction

    run_to_first_instruction(tracees)
    if without_vdso:
        from stepping.vdso import take_vdso_out

        take_vdso_out(tracees.pid)


def _install_direct(tracees: "TraceeGroup", direct: Direct) -> int:
    """Let the program, which is about to begin, make calls itself; return where its table is, 0 if it cannot."""
    from stepping.direct_calls import install, load_bias

    assert tracees.leader is not None
    bias = load_bias(tracees.pid, direct.header)
    return install(tracees.leader, direct.sites.moved(bias), direct.given_pass) or 0


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
        if program.is_seized and os.read(go, 1) != b"g":
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
        if program.without_vdso and not program.is_seized:
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
