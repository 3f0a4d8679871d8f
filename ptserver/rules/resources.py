"""The part of a remote program's resources that is local, by rules: files, ports, standard streams.

Calls that concern local things alone are made here, by this process, on its own descriptors (`ptserver.rules.table`),
from copies of their arguments. All others go to the server, some of them changed: what it has to wait for without the
local descriptors, relative paths of a local folder. A call that would need both machines fails with an errno that
programs know how to do without (`refusal_of_mixture`).

    opening a local file   made here; then the server reserves the number (an eventfd), which the call returns
    dup, close, ...        made at the server on the placeholder, then here on what it stands for
    epoll, poll, select    the server waits; this process watches the local part, and cancels the wait when that is
                           ready; the answer has what is ready on both sides
    connect, bind          a socket becomes local by the port or path, see `ptserver.rules.sockets`
    SCM_RIGHTS             local sockets pass on local descriptors; what is received gets a number as what is opened

    mmap of a local file   the thread makes it here, of the file itself
    execve                 made at the server, where pipes stand for local descriptors (`ptserver.rules.relays`)

Cannot be had: passing descriptors of one side in messages of the other's sockets (EINVAL).

Not trusted: the program, the server. Thread rules: the host's thread; workers only make calls.
"""

import errno
import os
import resource
from collections.abc import Callable

from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.messages import Result
from ptserver.net.poll_loop import PollLoop
from ptserver.rules.local_sockets import LocalSockets, Serve
from ptserver.rules.paths import Placed, needs_folder, place, signed
from ptserver.rules.relays import HostRelays
from ptserver.rules.rules import Rules, normalise
from ptserver.rules.server import Server
from ptserver.rules.sockets import (
    COPYING,
    note_change,
    refusal_of_mixture,
)
from ptserver.rules.table import LocalTable
from ptserver.rules.waiting import LocalWaiting
from ptserver.rules.waits import EPOLLS, POLLS, SELECTS
from ptserver.shadow.execute import Executed, execute
from ptserver.shadow.waiting import Waiting
from ptserver.shadow.workers import RETRY_SECONDS, Workers
from stepping.syscalls import Arch, ArgKind, ResultKind, Syscall, SyscallClass
from stepping.syscalls.marshal import Args

_F_DUPFD, _F_SETFD, _F_SETOWN, _F_SETOWN_EX, _F_DUPFD_CLOEXEC = 0, 2, 8, 15, 1030
_CLOSE_RANGE_CLOEXEC = 4
_EPOLL_ADD, _EPOLL_DEL = 1, 2
_PLACEHOLDER_FLAGS = os.EFD_CLOEXEC | os.EFD_NONBLOCK
_SENDS = {"connect": (1, 2), "bind": (1, 2), "sendto": (4, 5)}  # where the address is, and its size
_NO_NUMBER = 0xFFFFFFFF
_MAX_PATH_BYTES = 4096
_MADE_HERE = frozenset({SyscallClass.FILE, SyscallClass.NET})
_RELEVANT = frozenset({ArgKind.FD, ArgKind.DIRFD, ArgKind.PATH})


class LocalResources:
    """Serves what *rules* say is local of the program whose first process is *main*."""

    def __init__(
        self,
        rules: Rules,
        server: Server,
        loop: PollLoop,
        main: Process,
        arch: Arch,
        map_own: Callable[[PendingCall, int, int], None],
        relays: HostRelays | None,
    ) -> None:
        """Begin; *map_own* lets a thread map a descriptor of this process, see `FileMappings`.

        relays: what carries local descriptors to programs that are executed, if the server can have them.
        """
        self._map_own = map_own
        self._relays = relays
        self._rules = rules
        self._server = server
        self._loop = loop
        self._tables: dict[Process, LocalTable] = {main: LocalTable()}
        self._main = main
        self._workers: Workers[int] = Workers(keep=lambda fd: fd)
        self._working: dict[int, Callable[[Executed], None]] = {}
        self._waiting = LocalWaiting(server, loop, arch)
        self._relevant: dict[str, bool] = {}
        loop.watch(self._workers.fileno(), self._take_finished)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if rules.stdio().side == "local":
            for number in (0, 1, 2):
                self._tables[main].files[number] = os.dup(number)
                os.set_inheritable(self._tables[main].files[number], True)
        self._special: dict[str, Serve] = {
            "execve": self._execute,
            "execveat": self._execute,
            "close": self._close,
            "close_range": self._close_range,
            "dup": self._duplicate,
            "dup2": self._duplicate,
            "dup3": self._duplicate,
            "fcntl": self._control,
            "chdir": self._change_folder,
            "fchdir": self._change_to_descriptor,
            "getcwd": self._tell_folder,
            "umask": self._set_mask,
            "epoll_ctl": self._waiting.control_set,
            "mmap": self._map,
            **dict.fromkeys(EPOLLS, self._waiting.wait_for_set),
            **dict.fromkeys(POLLS | SELECTS, self._waiting.wait_for_descriptors),
        }
        sockets = LocalSockets(
            rules, server, self._serve, self._make_here, self._reserve, self._learn_folder, self._or_forward
        )
        self._special |= sockets.handlers()

    def take(self, call: PendingCall) -> bool:
        """Serve *call*, in whole or in part; return False if it is the server's as it is."""
        row = call.row
        assert row is not None
        special = self._special.get(row.name)
        table = self._table(call.process)
        if special is not None:
            return special(call, row, table)
        relevant = self._relevant.get(row.name)
        if relevant is None:
            relevant = any(arg.kind in _RELEVANT for arg in row.args)
            self._relevant[row.name] = relevant
        return relevant and self._serve(call, row, table)

    def abandon(self, call: PendingCall) -> None:
        """Give up *call*: its thread was interrupted and does something else now."""
        self._waiting.abandon(call)
        if call.id in self._working:
            self._workers.interrupt(call.id)
            self._loop.later(RETRY_SECONDS, self._interrupt_again)

    def heard(self, call: PendingCall, value: int, failure: int) -> None:
        """Note what became of *call*, before the program hears of it."""
        self._server.heard(call, value, failure)

    def born(self, process: Process, parent: Process) -> None:
        """Let a new process have what the one has that has forked it."""
        self._tables[process] = self._table(parent).fork()

    def ended(self, process: Process) -> None:
        """Forget a process that is gone."""
        table = self._tables.pop(process, None)
        if table is not None:
            table.close()

    # The usual calls.

    def _table(self, process: Process) -> LocalTable:
        table = self._tables.get(process)
        if table is None:  # a new process: it has what its parent has, which does nothing else meanwhile
            parent = _parent(process.pid)
            of_parent = next(
                (t for p, t in self._tables.items() if p.pid == parent), self._tables.get(self._main)
            )
            table = self._tables[process] = of_parent.fork() if of_parent is not None else LocalTable()
        return table

    def _serve(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        args, ins, outs, *_ = call.gathered
        if table.folder is None and needs_folder(row, args, ins):
            self._learn_folder(call, table, lambda: self._or_forward(self._serve, call, row, table))
            return True
        placed = place(row, args, ins, table, self._rules)
        if "local" not in placed.sides:
            path = placed.path if row.result is ResultKind.FD else None

            def made(value: int, failure: int) -> None:
                if path is not None and not failure:
                    table.drop(value)
                    table.paths[value] = path

            if path is not None:
                self._server.watch(call, made)
            if not placed.changed:
                return False
            self._ask_instead(call, row, placed)
        elif row.klass not in _MADE_HERE or row.name == "chroot":
            self._server.warn(f"{row.name} is not made of something local")
            self._server.answer(call, 0, errno.EPERM, {})
        elif "remote" in placed.sides:
            if row.name not in COPYING:
                self._server.warn(
                    f"{row.name} cannot be made of something local and something of the server's"
                )
            self._server.answer(call, 0, refusal_of_mixture(row.name), {})
        else:
            self._make(call, row, placed, table, outs)
        return True

    def _or_forward(self, serve: Serve, call: PendingCall, row: Syscall, table: LocalTable) -> None:
        if not serve(call, row, table):
            self._server.forward(call)

    def _ask_instead(self, call: PendingCall, row: Syscall, placed: Placed) -> None:
        """Have the server make *call* with other arguments."""

        def answered(result: Result) -> None:
            self._server.answer(call, result.value, result.errno, result.outs)

        args, outs = _registers(placed.args), call.gathered.outs
        self._server.ask(call, row.name, args, placed.ins, outs, answered)

    def _make(
        self, call: PendingCall, row: Syscall, placed: Placed, table: LocalTable, outs: dict[int, int]
    ) -> None:
        """Make a call here, now or on a thread that waits, and answer it."""

        def made(executed: Executed) -> None:
            value, failure, filled = executed
            if failure or row.result is not ResultKind.FD:
                self._server.answer(call, value, failure, filled)
                return

            def reserved(number: int, refused: int) -> None:
                if placed.path is not None and not refused:
                    table.paths[number] = placed.path
                self._server.answer(call, number, refused, filled if not refused else {})

            self._reserve(call, table, value, reserved)

        self._make_here(call, row, placed, outs, made)

    def _make_here(
        self,
        call: PendingCall,
        row: Syscall,
        placed: Placed,
        outs: dict[int, int],
        made: Callable[[Executed], None],
    ) -> None:
        args = _registers(placed.args)
        if row.may_wait and Waiting().may_wait(row, args, placed.ins):
            self._working[call.id] = made
            self._workers.start(call.id, lambda: execute(row, args, placed.ins, outs))
        else:
            made(execute(row, args, placed.ins, outs))

    def _reserve(
        self, call: PendingCall, table: LocalTable, fd: int, then: Callable[[int, int], None]
    ) -> None:
        """Get a number of the program's for *fd*, a descriptor of this process; *then* hears it, and an errno."""

        def reserved(result: Result) -> None:
            if result.errno:
                os.close(fd)
            else:
                table.drop(result.value)
                table.files[result.value] = fd
                table.reserved.add(result.value)
            then(result.value, result.errno)

        self._server.ask(call, "eventfd2", (0, _PLACEHOLDER_FLAGS, 0, 0, 0, 0), {}, {}, reserved)

    def _take_finished(self) -> None:
        for call_id, executed in self._workers.take_finished():
            self._working.pop(call_id)(executed)

    def _interrupt_again(self) -> None:
        self._workers.interrupt_again()
        if self._workers.is_interrupting:
            self._loop.later(RETRY_SECONDS, self._interrupt_again)

    # Numbers.

    def _close(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        table.drop(signed(call.args[0]))  # before the server knows: it gives the number away at once
        return False

    def _close_range(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        first, last, flags = (arg & 0xFFFFFFFF for arg in call.args[:3])
        if not flags & _CLOSE_RANGE_CLOEXEC and first <= last:
            table.drop_range(first, last)
        return False

    def _duplicate(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        number = signed(call.args[0])
        target = signed(call.args[1]) if row.name != "dup" else -1
        if not table.knows(number) and not table.knows(target):
            return False
        close_on_exec = row.name == "dup3" and bool(call.args[2] & os.O_CLOEXEC)
        self._duplicate_both(call, table, number, close_on_exec)
        return False

    def _duplicate_both(self, call: PendingCall, table: LocalTable, number: int, close_on_exec: bool) -> None:
        def duplicated(value: int, failure: int) -> None:
            if not failure:
                table.duplicate(number, value, close_on_exec=close_on_exec)

        self._server.watch(call, duplicated)

    def _control(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        number, command = signed(call.args[0]), call.args[1] & 0xFFFFFFFF
        if command in (_F_DUPFD, _F_DUPFD_CLOEXEC):
            if not table.knows(number):
                return False
            self._duplicate_both(call, table, number, command == _F_DUPFD_CLOEXEC)
            return False
        note_change(table, row.name, call.args, call.gathered.ins)
        if number in table.files and command in (_F_SETOWN, _F_SETOWN_EX):
            self._server.answer(call, 0, errno.EPERM, {})  # processes here are not the program's
            return True
        return self._serve(call, row, table)

    def _map(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        index = next(index for index, arg in enumerate(row.args) if arg.kind is ArgKind.FD)
        number = signed(call.args[index])
        if number not in table.files:
            return False
        self._map_own(call, number, table.files[number])
        return True

    def _execute(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        """Programs are executed at the server, in the folder that the program is in there."""
        args, ins, *_ = call.gathered
        if table.folder is None and needs_folder(row, args, ins):
            self._learn_folder(call, table, lambda: self._or_forward(self._execute, call, row, table))
            return True
        placed = place(row, args, ins, table, self._rules)
        if "local" not in placed.sides and not table.folder_is_local:
            self._hand_on(call, table)
            return False
        self._server.warn("programs are executed at the server: neither they nor their folder may be local")
        self._server.answer(call, 0, errno.EACCES, {})
        return True

    def _hand_on(self, call: PendingCall, table: LocalTable) -> None:
        """Have what *call* executes find local descriptors relayed, or closed: never the server's placeholders."""
        for number in table.reserved:
            self._server.ask(call, "fcntl", (number, _F_SETFD, 1, 0, 0, 0), {}, {}, lambda result: None)
        inherited = table.inherited()
        relayed = self._relays.announce(call, inherited) if self._relays is not None else ()
        closed = (number for number in inherited if number in table.reserved and number not in relayed)
        if numbers := ", ".join(map(str, closed)):
            self._server.warn(
                f"what is executed runs at the server, and finds descriptors {numbers} of this machine closed"
            )

    # The working directory.

    def _learn_folder(self, call: PendingCall, table: LocalTable, then: Callable[[], object]) -> None:
        def learned(result: Result) -> None:
            data = b"/" if result.errno else next(iter(result.outs.values()), b"/").partition(b"\0")[0]
            table.folder = normalise(data.decode("utf-8", "surrogateescape"))
            then()

        args = (1, _MAX_PATH_BYTES, 0, 0, 0, 0)
        self._server.ask(call, "getcwd", args, {}, {0: _MAX_PATH_BYTES}, learned)

    def _change_folder(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        args, ins, *_ = call.gathered
        if table.folder is None and needs_folder(row, args, ins):
            self._learn_folder(call, table, lambda: self._or_forward(self._change_folder, call, row, table))
            return True
        placed = place(row, args, ins, table, self._rules)
        path = placed.path
        if "local" in placed.sides and path is not None:
            try:
                os.close(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                failure = 0 if os.access(path, os.X_OK) else errno.EACCES
            except OSError as error:
                failure = error.errno or errno.EIO
            if not failure:
                table.folder, table.folder_is_local = path, True
            self._server.answer(call, 0, failure, {})
            return True

        self._server.watch(call, _now_at(table, path))
        if not placed.changed:
            return False
        self._ask_instead(call, row, placed)
        return True

    def _change_to_descriptor(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        number = signed(call.args[0])
        path = table.paths.get(number)
        if number in table.files:
            is_folder = path is not None and os.path.isdir(path)
            if is_folder:
                table.folder, table.folder_is_local = path, True
            self._server.answer(call, 0, 0 if is_folder else errno.ENOTDIR, {})
            return True

        self._server.watch(call, _now_at(table, path))
        return False

    def _tell_folder(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        if not table.folder_is_local or table.folder is None:
            return False
        data = table.folder.encode("utf-8", "surrogateescape") + b"\0"
        if len(data) > call.gathered.outs.get(0, 0):
            self._server.answer(call, 0, errno.ERANGE, {})
        else:
            self._server.answer(call, len(data), 0, {0: data})
        return True

    def _set_mask(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        os.umask(call.args[0] & 0o777)  # for what is made here
        return False


def _now_at(table: LocalTable, path: str | None) -> Callable[[int, int], None]:
    """Return what notes that the server's folder *path* is the working directory."""

    def changed(_: int, failure: int) -> None:
        if not failure:
            table.folder, table.folder_is_local = path, False

    return changed


def _registers(args: list[int]) -> Args:
    a0, a1, a2, a3, a4, a5 = args
    return (a0, a1, a2, a3, a4, a5)


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0
