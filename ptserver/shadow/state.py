"""The shadow: holds the program's operating-system state in this process, and makes its calls here.

Descriptors have the numbers that the program knows; working directory, umask, credentials and the files that are open
are this process's. Nearly every call is made by `ptserver.shadow.execute` from the table alone. The exceptions are
here, each with its reason:

- numbers of our own descriptors are nobody's (EBADF), and close_range stops before them;
- resource limits are the program's, not this process's (`ptserver.shadow.limits`);
- a file that is mapped is kept open, for the host, which maps a copy (`ptserver.hosts.file_mappings`);
- vmsplice would lend pages of this process to a pipe;
- socket options that lead to further memory (filters), or leave the kernel pages of a buffer that is used again
  (MSG_ZEROCOPY): EOPNOTSUPP;
- what this process has for itself is not opened, nor copied by pidfd_getfd (`ptserver.shadow.memory`);
- prctl would change this process in other ways than the program's, but for rights and what is about processes;
- a call that changes credentials changes those of one thread: idle threads are given up, so that new ones have
  the new credentials.

Forks and execs are not made here, but by `ptserver.shadow.process` and `become`. All other calls about processes are:
what the program calls a process is a process of this machine.

Refused with ENOSYS, and a line in the log for each name: what concerns the whole machine, and what the
table cannot describe completely.

Not trusted: the stub host, see `ptserver.shadow.execute`.
Thread rules: one thread, but for what `work` returns.
"""

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Set

from ptserver.hosts.own_files import CONTENT, OPENING, own_file, shadow_content
from ptserver.hosts.policy import BY_NUMBER, OPTIONS_OF_PROCESSES
from ptserver.shadow.descriptors import Descriptors
from ptserver.shadow.events import Ask
from ptserver.shadow.exec import execute_program
from ptserver.shadow.execute import Executed, execute
from ptserver.shadow.limits import Limits, is_own_program
from ptserver.shadow.memory import OPENS, OwnThings
from ptserver.shadow.relays import RelayEnds
from ptserver.shadow.signals import ShadowSignals
from ptserver.shadow.waiting import Args, Waiting
from ptserver.shadow.workers import Work
from stepping.clone_flags import CLONE_NEWPID
from stepping.syscalls import SYSCALLS, ArgKind, Syscall, SyscallClass
from stepping.syscalls.socket_messages import passed_descriptors

_EXECUTED = frozenset({SyscallClass.FILE, SyscallClass.NET, SyscallClass.IDENTITY})
#: Of the other classes: what only tells, or sleeps. A server that serves a clock may let some calls proceed.
_HARMLESS = frozenset(
    "sysinfo clock_gettime clock_getres gettimeofday time times getrusage getcpu getrandom"
    " nanosleep clock_nanosleep".split()
)
#: Of the calls about processes, those that only name them.
_ABOUT_PROCESSES = frozenset(
    "wait4 waitid kill rt_sigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd process_mrelease kcmp prctl".split()
) | frozenset(BY_NUMBER)
#: Of those about the system, what gives a process namespaces of its own, and changes them.
_ABOUT_NAMESPACES = frozenset("unshare mount umount2 pivot_root".split())
#: Calls that are made where the fork and the exec of a process are.
_BIRTHS = frozenset("fork vfork clone clone3 execve execveat".split())
_REFUSED = frozenset({"vmsplice", "mq_notify"})
_CHANGES_NUMBERS = frozenset({"close", "close_range", "dup2", "dup3"})
_CHANGES_CREDENTIALS = frozenset(
    "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset prctl".split()
)
_OPENS_SIGNALS = frozenset({"signalfd", "signalfd4"})
_LIMITS = frozenset({"getrlimit", "setrlimit", "prlimit64"})
_CLOSE_RANGE_CLOEXEC = 4
_SENDS_MESSAGES = frozenset({"sendmsg", "sendmmsg"})
#: Where the flags of these calls are.
_SENDS = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
_MSG_NOSIGNAL = 0x4000
#: What getsockopt reads, and what it says, for the kind of a socket.
_SO_TYPE, _SOCK_STREAM = {3: bytes(4), 4: b"\4\0\0\0"}, b"\1\0\0\0"
_OPTION_CALLS = frozenset({"setsockopt", "getsockopt"})
#: (level, name): SO_ATTACH_FILTER (to get: SO_GET_FILTER), SO_ATTACH_REUSEPORT_CBPF, SO_ZEROCOPY;
#: TCP_ZEROCOPY_RECEIVE; IPT_SO_SET_REPLACE and what lies beside it, for IPv4 and IPv6.
_BOUND_OPTIONS = frozenset(
    {(1, 26), (1, 51), (1, 60), (6, 35), *((level, n) for level in (0, 41) for n in (64, 65))}
)


#: How long idle threads may take to end.
_RETIRE_SECONDS = 0.5
_READS_LINKS = frozenset({"readlink", "readlinkat"})
_WAIT_OPTIONS = {"wait4": 2, "waitid": 3}
_WCLONE, _WALL = 0x80000000, 0x40000000
_LOOKS_AT_LINKS = frozenset({"lstat", "unlink", "lchown"})


class Shadow:
    """Makes the calls of one process.

    program: the path of what it executes. emulates: programs of another architecture that it executes are emulated.
    credentials_changed: called after a call that changed them. forgets: to be set to what is called with the first
    and the last of the descriptors that are about to be closed, or to stand for something else. relays: what the
    program that it becomes is to have of the stub host's descriptors.
    """

    def __init__(
        self,
        descriptors: Descriptors,
        log: Callable[[str], None],
        signals: ShadowSignals,
        credentials_changed: Callable[[], None],
        program: bytes,
        *,
        emulates: bool = False,
    ) -> None:
        self._program = program
        self._emulates = emulates
        self._pid = os.getpid()
        self._descriptors = descriptors
        self._signals = signals
        self._limits = Limits(descriptors)
        self._own = OwnThings(descriptors.program_limit)
        self._waiting = Waiting()
        self._log = log
        self._credentials_changed = credentials_changed
        self._fd_indexes: dict[str, tuple[int, ...]] = {}
        self._paths: dict[str, tuple[int, ...]] = {}
        self._refused: set[str] = set()
        self._mapped: set[int] = set()
        self.relays = RelayEnds(descriptors)
        self.forgets: Callable[[int, int], None] = lambda first, last: None
        self.may_wait = self._waiting.may_wait

    def _unshare(self, flags: int) -> Executed:
        """Have namespaces of this process's own, where it has one thread, which is what has them."""
        if flags & CLONE_NEWPID or not self._has_one_thread():
            return 0, errno.EINVAL, {}
        failed = ctypes.CDLL(None, use_errno=True).unshare(ctypes.c_int(flags & 0xFFFFFFFF))
        return 0, ctypes.get_errno() if failed else 0, {}

    def _has_one_thread(self) -> bool:
        """Whether this thread is the only one; idle ones are ended."""
        self._credentials_changed()
        deadline = time.monotonic() + _RETIRE_SECONDS
        while threading.active_count() > 1 and time.monotonic() < deadline:
            os.sched_yield()
        return threading.active_count() == 1

    @property
    def mapped(self) -> Set[int]:
        """The descriptors of our own that the program's mappings need."""
        return self._mapped

    def start_anew(self, signals: ShadowSignals, credentials_changed: Callable[[], None]) -> None:
        """Go on in a process that was forked: the state is the same, what serves it is new."""
        self._pid = os.getpid()
        self._signals = signals
        self._credentials_changed = credentials_changed
        self.relays = RelayEnds(self._descriptors)

    def become(self, name: str, args: Args, ins: dict[int, bytes]) -> int:
        """Become the program that the exec call *name* wants; return the errno if that fails."""
        self.relays.place()
        try:
            if name == "execveat" and self._descriptors.program_limit <= args[0] & 0xFFFFFFFF < 1 << 31:
                return errno.EBADF
            for index in self._path_indexes(SYSCALLS[name]):
                if ins.get(index, b"").startswith(b"/proc/"):
                    ins = self._look_at_itself(name, args, ins, {}, index)[1]
            return execute_program(name, args, ins, self._limits, self._signals, emulates=self._emulates)
        finally:
            self.relays.withdraw()

    def refuses(self, row: Syscall, *, quietly: bool = False) -> bool:
        """Whether the call is none that this shadow makes; the first time, the log says so, if not *quietly*."""
        name = row.name
        if name in _ABOUT_PROCESSES or name in _ABOUT_NAMESPACES or name in _BIRTHS or name == "mmap":
            return False
        if (row.klass in _EXECUTED or name in _HARMLESS) and not row.bound and name not in _REFUSED:
            return False
        if name not in self._refused and not quietly:
            self._refused.add(name)
            self._log(
                f"refused {name} with ENOSYS: calls of class {row.klass.value} are not served like that"
            )
        return True

    def execute(
        self, row: Syscall, args: Args, ins: dict[int, bytes], outs: dict[int, int], pid: int
    ) -> Executed:
        """Make a call that `refuses` does not, on this thread. It sleeps if `may_wait` says so."""
        name = row.name
        if self._is_ours(row, args, ins):
            return 0, errno.EBADF, {}
        if name in _OPTION_CALLS and (args[1] & 0xFFFFFFFF, args[2] & 0xFFFFFFFF) in _BOUND_OPTIONS:
            return 0, errno.EOPNOTSUPP, {}
        if name == "prctl" and args[0] & 0xFFFFFFFF not in OPTIONS_OF_PROCESSES:
            return 0, errno.EINVAL, {}
        if name == "pidfd_getfd" and args[1] & 0xFFFFFFFF >= self._descriptors.program_limit:
            return 0, errno.EBADF, {}
        if name == "unshare":
            return self._unshare(args[0])
        if name == "mmap":
            return self._keep_mapped(args[4] & 0xFFFFFFFF)
        for index in self._path_indexes(row):
            if ins.get(index, b"").startswith(b"/proc/"):
                answer, ins = self._look_at_itself(name, args, ins, outs, index)
                if answer is not None:
                    return answer
        if name in _LIMITS and (name != "prlimit64" or args[0] & 0xFFFFFFFF in (0, pid, self._pid)):
            return self._limits.serve(name, args, ins, outs)
        if name == "prlimit64" and args[2] and not is_own_program(args[0] & 0xFFFFFFFF):
            return 0, errno.EPERM, {}  # the server's own processes have numbers and limits, too
        if name in _CHANGES_NUMBERS:
            self._forget(name, args)
            if name == "close_range":
                return self._close_range(row, args)
        executed = execute(row, args, ins, outs)
        if name in _CHANGES_CREDENTIALS:
            self._credentials_changed()
        elif name in _OPENS_SIGNALS and not executed[1]:
            self._signals.leave_to_program(int.from_bytes(ins.get(1, b"")[:8], "little"))
        return self._own.withhold(executed) if name in OPENS else executed

    def asking(self, row: Syscall, args: Args, ins: dict[int, bytes], outs: dict[int, int]) -> Ask | None:
        """Return what makes a call that waits for events if there are some, else gives None; None for other calls."""
        asking = self._waiting.without_timeout(row, args, ins)
        if asking is None or self._is_ours(row, args, ins):
            return None
        timeout, args, ins = asking
        if timeout in outs:
            outs = {index: size for index, size in outs.items() if index != timeout}

        def ask(epfd: int | None = None) -> Executed | None:
            executed = execute(row, args if epfd is None else (epfd, *args[1:]), ins, outs)
            return executed if executed[0] or executed[1] else None

        return ask

    def timeout_of(self, row: Syscall, args: Args, ins: dict[int, bytes]) -> float | None:
        """Return how many seconds a call that waits for events may wait; None for ever."""
        return self._waiting.timeout_of(row, args, ins)

    def work(self, row: Syscall, args: Args, ins: dict[int, bytes], outs: dict[int, int]) -> Work:
        """Return the making of a call that may wait, for another thread."""
        if self._is_ours(row, args, ins):
            return lambda: (0, errno.EBADF, {})
        if row.name in OPENS:
            return lambda: self._own.withhold(execute(row, args, ins, outs))
        if row.name in _WAIT_OPTIONS:
            args = _for_any_child(args, _WAIT_OPTIONS[row.name])
        return lambda: execute(row, args, ins, outs)

    def raises_sigpipe(self, row: Syscall, args: Args) -> bool:
        """Whether SIGPIPE goes with the EPIPE of that call."""
        if row.name in _SENDS and args[_SENDS[row.name]] & _MSG_NOSIGNAL:
            return False
        kind = execute(SYSCALLS["getsockopt"], (args[0], 1, 3, 1, 1, 0), _SO_TYPE, {3: 4, 4: 4})
        return kind[1] != 0 or kind[2][3] == _SOCK_STREAM

    def open_bytes(self, data: bytes, flags: int) -> Executed:
        """Return a new descriptor of the program's that reads *data*; flags: of open(2), for O_CLOEXEC."""
        return open_bytes(data, flags)

    def _is_ours(self, row: Syscall, args: Args, ins: dict[int, bytes]) -> bool:
        """Whether the call names a descriptor of our own, in a register or in a message that passes it on."""
        indexes = self._fd_indexes.get(row.name)
        if indexes is None:
            indexes = tuple(i for i, arg in enumerate(row.args) if arg.kind in (ArgKind.FD, ArgKind.DIRFD))
            self._fd_indexes[row.name] = indexes
        first = self._descriptors.program_limit
        for index in indexes:
            if first <= args[index] & 0xFFFFFFFF < 1 << 31 and args[index] not in self._mapped:
                return True
        return row.name in _SENDS_MESSAGES and any(fd >= first for fd in _passed(ins.get(1, b"")))

    def _keep_mapped(self, fd: int) -> Executed:
        """Return a descriptor of our own for a file that the program maps; the only ones that calls may name."""
        if self._descriptors.program_limit <= fd:
            return 0, errno.EBADF, {}
        try:
            kept = self._descriptors.copy(fd)
        except OSError as error:
            return 0, error.errno or errno.EMFILE, {}
        self._mapped.add(kept)
        return kept, 0, {}

    def _path_indexes(self, row: Syscall) -> tuple[int, ...]:
        indexes = self._paths.get(row.name)
        if indexes is None:
            indexes = tuple(i for i, arg in enumerate(row.args) if arg.kind is ArgKind.PATH)
            self._paths[row.name] = indexes
        return indexes

    def _look_at_itself(
        self, name: str, args: Args, ins: dict[int, bytes], outs: dict[int, int], index: int
    ) -> tuple[Executed | None, dict[int, bytes]]:
        """Answer a call on a file about the own process if it is not made; else return *ins* for it.

        index: of the path, which is below /proc.
        """
        if CONTENT in ins and name in OPENING:
            content = shadow_content(ins[index], self._pid, ins[CONTENT])
            if content is not None:
                return open_bytes(content, _flags(name, args, ins)), ins
        if own_file(ins[index], self._pid) != (self._pid, b"exe") or name in _LOOKS_AT_LINKS:
            return None, ins
        if name in _READS_LINKS:
            if not 0 < args[index + 2] & 0xFFFFFFFF < 1 << 31:
                return (0, errno.EINVAL, {}), ins
            link = self._program[: outs.get(index + 1, 0)]
            return (len(link), 0, {index + 1: link}), ins
        return None, ins | {index: self._program}

    def _forget(self, name: str, args: Args) -> None:
        """Forget what the numbers stand for that this call changes, and let others forget."""
        first = last = args[name != "close"] & 0xFFFFFFFF
        if name == "close_range":
            first, last = args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF
        self._waiting.forget(first, last)
        self._mapped.discard(first)
        self.forgets(first, last)

    def _close_range(self, row: Syscall, args: Args) -> Executed:
        first, last, flags = (arg & 0xFFFFFFFF for arg in args[:3])
        if first > last:
            return 0, errno.EINVAL, {}
        limit = self._descriptors.program_limit
        if first >= limit:
            return 0, 0, {}
        # CLOSE_RANGE_UNSHARE would give this thread descriptors of its own; a single-threaded program loses nothing.
        flags = flags & _CLOSE_RANGE_CLOEXEC if flags in (0, 2, 4, 6) else flags
        return execute(row, (first, min(last, limit - 1), flags, 0, 0, 0), {}, {})


def _passed(run: bytes) -> list[int]:
    try:
        return list(passed_descriptors(run))
    except ValueError:
        return []  # the call will fail


def _for_any_child(args: Args, index: int) -> Args:
    """Return the arguments of a wait, for all children if it was for those that end without SIGCHLD.

    A shadow always ends with SIGCHLD, as it was made by fork(2).
    """
    options = args[index] & 0xFFFFFFFF
    if not options & _WCLONE:
        return args
    changed = [*args]
    changed[index] = options & ~_WCLONE | _WALL
    return (changed[0], changed[1], changed[2], changed[3], changed[4], changed[5])


def _flags(name: str, args: Args, ins: dict[int, bytes]) -> int:
    """Return the flags of a call that opens a file."""
    if name == "openat2":
        return int.from_bytes(ins.get(2, b"")[:8], "little")
    return args[OPENING[name] + 1]


def open_bytes(data: bytes, flags: int) -> Executed:
    """Return a new descriptor of this process that reads *data*, as `ptserver.shadow.execute` does.

    flags: of open(2); only O_CLOEXEC matters.
    """
    try:
        writing = os.memfd_create("ptserver", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(writing), "wb") as file:
                file.write(data)
            reading = os.open(f"/proc/self/fd/{writing}", os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(reading, writing, inheritable=not flags & os.O_CLOEXEC)
            os.close(reading)
        except OSError:
            os.close(writing)
            raise
    except OSError as error:
        return 0, error.errno or errno.EIO, {}
    return writing, 0, {}
