"""Children of an emulated program, and the signals that its process gets from outside.

A process of the program is a process of this machine: fork(2) copies this one, emulator and all, and exec(2) puts the
new program in its place, natively if it can be and on another emulator if it is of another architecture. clone(2)
for a child that borrows its parent's memory (vfork) gives it a copy, which callers cannot rely on not to get.

Handlers of signals are the program's own and emulated; but whether a signal is ignored, kills, or is handled at all
this process's kernel must know, so each change is passed on to it.

Not trusted: the program.
Thread rules: the main thread, as Python allows no other to handle signals.
"""

import errno
import os
import signal
import struct
import sys
import threading
from pathlib import Path

from goabi.elf_header import read_elf_header
from goabi.errors import GoAbiError
from ptserver.machine import native_arch
from stepping.emulation.machine import Machine
from stepping.emulation.signals import SIG_DFL, SIG_IGN
from stepping.emulation.threads import Result, Thread
from stepping.syscalls.marshal import Gathered

_CLONE_PIDFD, _CLONE_PARENT_SETTID = 0x1000, 0x100000
_CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID, _CLONE_SETTLS = 0x200000, 0x1000000, 0x80000
_U32 = struct.Struct("<I")

#: What a processor raises is emulated, and what nobody can handle needs no handler.
_NEVER_PASSED_ON = frozenset(
    {
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGURG,  # Go sends it to its own threads all the time, and ignores it from elsewhere
    }
)
#: 32 and 33 are the C library's own.
_LAST_PASSED_ON = 31

_EXEC = (
    "import sys; sys.path.insert(0, {root!r}); from ptserver.emulated.host import main; "
    "main(sys.argv[1:], argv0={argv0!r})"
)


class SignalRelay:
    """Keeps this process's dispositions of signals equal to the program's, and passes on what arrives."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._before: dict[int, signal._HANDLER] = {}
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            machine.on_disposition = self._changed
            self._set(signal.SIGPIPE, signal.SIG_DFL)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._set(signal.SIGINT, signal.SIG_DFL)
        machine.on_stop = lambda _number: os.kill(os.getpid(), signal.SIGSTOP)

    def close(self) -> None:
        """Put everything back as it was."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _changed(self, number: int, handler: int) -> None:
        if number in _NEVER_PASSED_ON or number > _LAST_PASSED_ON:
            return
        if handler == SIG_DFL:
            self._set(number, signal.SIG_DFL)
        elif handler == SIG_IGN:
            self._set(number, signal.SIG_IGN)
        else:
            self._set(number, lambda caught, _frame: self._machine.raise_signal(caught))

    def _set(self, number: int, handler: "signal._HANDLER") -> None:
        before = signal.signal(number, handler)
        self._before.setdefault(number, before)


def fork(machine: Machine, thread: Thread, args: list[int]) -> Result:
    """Carry out clone(2) of a process for *thread*; return in both processes."""
    flags, stack, parent_tid = args[:3]
    abi, space = machine.abi, machine.space
    wants_tid = flags & (_CLONE_PARENT_SETTID | _CLONE_PIDFD)
    if wants_tid and not space.allows(parent_tid, 4, 2):
        return -errno.EFAULT
    try:
        pid = os.fork()
    except OSError as error:
        return -(error.errno or errno.EAGAIN)
    child_tid = args[abi.child_tid_argument]
    if pid:
        if flags & _CLONE_PARENT_SETTID:
            _U32.pack_into(space.view, parent_tid, pid)
        if flags & _CLONE_PIDFD:
            descriptor = os.pidfd_open(pid)
            _U32.pack_into(space.view, parent_tid, descriptor)
        return pid
    machine.become_child(thread, os.getpid())
    if flags & _CLONE_CHILD_SETTID and space.allows(child_tid, 4, 2):
        _U32.pack_into(space.view, child_tid, machine.pid)
    if flags & _CLONE_CHILD_CLEARTID:
        thread.clear_child_tid = child_tid
    return machine.continue_with(
        thread, 0, sp=stack or None, tls=args[abi.tls_argument] if flags & _CLONE_SETTLS else None
    )


def exec_program(call: Gathered) -> int:
    """Carry out execve(2); return a negative errno if it fails, and not at all otherwise."""
    path = call.ins.get(0)
    if path is None:
        return -errno.EFAULT
    argv = _strings(call.ins.get(1, b""))
    env = dict(entry.partition(b"=")[::2] for entry in _strings(call.ins.get(2, b"")))
    program, arguments = path, argv
    try:
        if not os.access(path, os.X_OK):
            os.stat(path)
            return -errno.EACCES
        arch = read_elf_header(os.fsdecode(path)).arch
        if arch != native_arch():
            root = str(Path(__file__).resolve().parent.parent)
            code = _EXEC.format(root=root, argv0=os.fsdecode(argv[0]) if argv else "")
            program = os.fsencode(sys.executable)
            arguments = [program, b"-c", code.encode(), path, *argv[1:]]
    except GoAbiError:
        pass  # a script, or what the kernel knows better
    except OSError as error:
        return -(error.errno or errno.ENOENT)
    try:
        os.execve(program, arguments or [b""], env)
    except OSError as error:
        return -(error.errno or errno.ENOEXEC)


def _strings(joined: bytes) -> list[bytes]:
    return joined.split(b"\0") if joined else []
