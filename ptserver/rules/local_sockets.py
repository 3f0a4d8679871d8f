"""What a program does with sockets, as far as it is local: they become so by an address, and pass on descriptors.

Thread rules: the host's thread.
"""

import errno
import posixpath
from collections.abc import Callable

from ptserver.hosts.pending_call import PendingCall
from ptserver.rules.paths import Placed, place, signed
from ptserver.rules.rules import Rules
from ptserver.rules.server import Server
from ptserver.rules.sockets import (
    becomes_local,
    make_local,
    note_change,
    note_socket,
    unix_address,
    unix_path,
)
from ptserver.rules.table import LocalTable
from ptserver.rules.waiting import put_into_set
from ptserver.shadow.execute import Executed
from stepping.syscalls import Syscall
from stepping.syscalls.marshal import Args
from stepping.syscalls.socket_messages import passed_descriptors, with_descriptors
from stepping.syscalls.socket_messages import split as split_messages

#: Serves a call, in whole or in part; returns False if it is the server's as it is.
Serve = Callable[[PendingCall, Syscall, LocalTable], bool]
#: Makes a call here, and calls back with what became of it.
Make = Callable[[PendingCall, Syscall, Placed, dict[int, int], Callable[[Executed], None]], None]
#: Gets a number of the program's for a descriptor of this process, and calls back with that, and an errno.
Reserve = Callable[[PendingCall, LocalTable, int, Callable[[int, int], None]], None]

_EPOLL_ADD, _EPOLL_DEL = 1, 2
_SENDS = {"connect": (1, 2), "bind": (1, 2), "sendto": (4, 5)}  # where the address is, and its size
_NO_NUMBER = 0xFFFFFFFF


class LocalSockets:
    """Serves calls on sockets. serve: does so for calls whose arguments tell where they belong; learn_folder: calls
    back when a table has the working directory; again: serves a call then, or has the server do it.
    """

    def __init__(
        self,
        rules: Rules,
        server: Server,
        serve: Serve,
        make_here: Make,
        reserve: Reserve,
        learn_folder: Callable[[PendingCall, LocalTable, Callable[[], object]], None],
        again: Callable[[Serve, PendingCall, Syscall, LocalTable], None],
    ) -> None:
        self._rules = rules
        self._server = server
        self._serve = serve
        self._make_here = make_here
        self._reserve = reserve
        self._learn_folder = learn_folder
        self._again = again

    def handlers(self) -> dict[str, Serve]:
        """Return what serves which calls."""
        return {
            "socket": self._make_socket,
            "setsockopt": self._note_option,
            "recvmsg": self._receive,
            "recvmmsg": self._receive,
            "sendmsg": self._send_messages,
            "sendmmsg": self._send_messages,
            **dict.fromkeys(_SENDS, self._reach),
        }

    def _make_socket(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        family, kind, protocol = (arg & 0xFFFFFFFF for arg in call.args[:3])

        def made(value: int, failure: int) -> None:
            if not failure:
                table.drop(value)
                note_socket(table, value, family, kind, protocol)

        self._server.watch(call, made)
        return False

    def _note_option(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        note_change(table, row.name, call.args, call.gathered.ins)
        return self._serve(call, row, table)

    def _reach(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        args, ins, *_ = call.gathered
        address_index, size_index = _SENDS[row.name]
        address = ins.get(address_index, b"")[: args[size_index] & 0xFFFFFFFF]
        path = unix_path(address) if signed(args[0]) in table.sockets else None
        if path is not None and not path.startswith("/"):
            if table.folder is None:
                self._learn_folder(call, table, lambda: self._again(self._reach, call, row, table))
                return True
            whole = unix_address(posixpath.join(table.folder, path))
            if whole is not None and becomes_local(self._rules, row.name, whole):
                address = whole
                call.gathered = call.gathered._replace(
                    args=_with_size(args, size_index, len(address)), ins=ins | {address_index: address}
                )
        if address:
            failure = self._maybe_make_local(call, row.name, address, table)
            if failure:
                self._server.answer(call, 0, failure, {})
                return True
        return self._serve(call, row, table)

    def _send_messages(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        run = call.gathered.ins.get(1, b"")
        try:
            passed = list(passed_descriptors(run))
            name = next((message.name for message in split_messages(run) if message.name), b"")
        except ValueError:
            return False
        if name and (failure := self._maybe_make_local(call, row.name, name, table)):
            self._server.answer(call, 0, failure, {})
            return True
        is_local = signed(call.args[0]) in table.files
        if any((number in table.files) != is_local for number in passed):
            self._server.warn("a descriptor of one machine cannot be passed on by a socket of the other")
            self._server.answer(call, 0, errno.EINVAL, {})
            return True
        if passed and is_local:
            ins = call.gathered.ins | {1: with_descriptors(run, table.files)}
            call.gathered = call.gathered._replace(ins=ins)
        return self._serve(call, row, table)

    def _receive(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        if signed(call.args[0]) not in table.files:
            return False

        def received(executed: Executed) -> None:
            value, failure, filled = executed
            fds = list(passed_descriptors(filled.get(1, b""))) if not failure else []
            if not fds:
                self._server.answer(call, value, failure, filled)
                return

            def numbered(numbers: dict[int, int]) -> None:
                renamed = filled | {1: with_descriptors(filled[1], numbers)}
                self._server.answer(call, value, 0, renamed)

            self._reserve_received(call, table, fds, numbered)

        placed = place(row, call.gathered.args, call.gathered.ins, table, self._rules)
        self._make_here(call, row, placed, call.gathered.outs, received)
        return True

    def _maybe_make_local(self, call: PendingCall, name: str, address: bytes, table: LocalTable) -> int:
        """Make the socket of the call local if its address says so; return an errno if that fails."""
        number = signed(call.args[0])
        tracked = table.sockets.get(number)
        if tracked is None or not becomes_local(self._rules, name, address):
            return 0
        try:
            table.files[number] = make_local(tracked)
            table.reserved.add(number)
        except OSError as error:
            return error.errno or errno.EIO
        del table.sockets[number]
        for epfd, event in tracked.events.items():  # it was there as the server's
            self._server.ask(
                call, "epoll_ctl", (epfd, _EPOLL_DEL, number, 0, 0, 0), {}, {}, lambda result: None
            )
            put_into_set(table, epfd, _EPOLL_ADD, table.files[number], event)
        return 0

    def _reserve_received(
        self, call: PendingCall, table: LocalTable, fds: list[int], then: Callable[[dict[int, int]], None]
    ) -> None:
        """Get numbers of the program's for *fds*, in order; *then* hears them, -1 where there is none."""
        numbers: dict[int, int] = {}

        def reserved(number: int, refused: int) -> None:
            numbers[fds[len(numbers)]] = _NO_NUMBER if refused else number
            if len(numbers) < len(fds):
                self._reserve(call, table, fds[len(numbers)], reserved)
            else:
                then(numbers)

        self._reserve(call, table, fds[0], reserved)


def _with_size(args: Args, index: int, size: int) -> Args:
    changed = [*args]
    changed[index] = size
    a0, a1, a2, a3, a4, a5 = changed
    return (a0, a1, a2, a3, a4, a5)
