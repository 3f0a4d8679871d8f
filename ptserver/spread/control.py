"""The socket at which a running spread program is looked at and told what to do: the home's side of
`ptserver.spread.operator_messages`.

Nothing here waits, and nobody who asks slowly holds the program up.
"""

import select
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial

from ptserver.errors import ConnectionLostError, ProtocolError
from ptserver.net.connection import Connection
from ptserver.net.wire import Codec
from ptserver.spread.agents import HostAddress
from ptserver.spread.operator_messages import (
    Did,
    Drain,
    FaultRow,
    FromOperator,
    HostRow,
    Join,
    List,
    Listed,
    Migrate,
    Peek,
    Peeked,
    ThreadRow,
    UnlinkedRow,
)
from ptserver.spread.session import SpreadSession
from ptserver.spread.threads import Thread, Where
from ptserver.spread.wishes import Wish
from stepping.maps import PAGE_BYTES
from stepping.syscalls import Sysno, by_number

#: How many addresses `Listed` tells faults of.
_MAX_FAULT_ROWS = 4096


_Operator = Connection[FromOperator]


class Control:
    """Serves whoever connects to *listener*, in the loop of *session*. path: the program's file."""

    def __init__(self, session: SpreadSession, listener: socket.socket, path: str) -> None:
        self._session = session
        self._home = session.home
        self._loop = session.loop
        self._listener = listener
        self._path = path
        self._operators: list[_Operator] = []
        listener.setblocking(False)
        self._loop.watch(listener.fileno(), self._accept)

    def close(self) -> None:
        """Let everybody go."""
        for operator in tuple(self._operators):
            self._drop(operator)
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone again, or there is no descriptor for it
            return
        operator: _Operator = Connection(sock, Codec("msgpack"), FromOperator)
        self._operators.append(operator)
        self._loop.watch(operator.fileno(), partial(self._serve, operator))

    def _drop(self, operator: _Operator) -> None:
        self._operators.remove(operator)
        self._loop.unwatch(operator.fileno())
        operator.close()
        if not self._operators:
            self._home.fault_counts = None

    def _serve(self, operator: _Operator) -> None:
        try:
            for message in operator.receive():
                self._take(operator, message)
        except (ConnectionLostError, ProtocolError):
            self._drop(operator)
        else:
            self._flush(operator)

    def _answer(self, operator: _Operator, message: Listed | Peeked | Did) -> None:
        if operator in self._operators:
            operator.send(message)
            self._flush(operator)

    def _flush(self, operator: _Operator) -> None:
        try:
            events = select.POLLIN if operator.flush() else select.POLLIN | select.POLLOUT
        except ConnectionLostError:
            self._drop(operator)
        else:
            self._loop.watch(operator.fileno(), partial(self._serve, operator), events)

    def _take(self, operator: _Operator, message: FromOperator) -> None:
        answer = partial(self._answer, operator)
        match message:
            case List():
                answer(self._listed(message))
            case Peek():
                self._peek(message, answer)
            case Migrate():
                self._migrate(message, answer)
            case Drain(request=request):
                self._session.drain(message.host, lambda error, host: answer(Did(request, error, host)))
            case Join(request=request):
                where = HostAddress(message.address, message.keys or None, message.token_file or None)
                self._session.join(where, lambda error, host: answer(Did(request, error, host)))

    def _peek(self, message: Peek, answer: Callable[[Peeked], None]) -> None:
        first, last = message.address, message.address + message.size - 1
        touchable = self._home.space.may_touch
        if all(touchable(page) for page in range(first // PAGE_BYTES, last // PAGE_BYTES + 1)):
            self._home.requests.read(
                message.address, message.size, lambda data: answer(Peeked(message.request, data))
            )
        else:
            answer(Peeked(message.request, b"", mapped=False))

    def _migrate(self, message: Migrate, answer: Callable[[Did], None]) -> None:
        if not self._home.members.is_ready(message.to):
            answer(Did(message.request, f"there is no host {message.to}, or it joins or leaves just now"))
            return
        self._home.wishes.add(
            Wish(
                message.goroutine,
                message.goid,
                message.goid_at,
                message.tid,
                message.curg_at,
                message.to,
                lambda: answer(Did(message.request, host=message.to)),
            )
        )

    def _listed(self, message: List) -> Listed:
        home = self._home
        pages = Counter(host for _, holders, _ in home.pages.held() for host in holders)
        faults = home.fault_counts.most_common(_MAX_FAULT_ROWS) if home.fault_counts is not None else []
        if message.faults:
            home.fault_counts = Counter()
        return Listed(
            message.request,
            self._session.pid,
            self._path,
            tuple(self._host_row(host, pages[host]) for host in home.members.present),
            tuple(self._thread_row(thread) for thread in home.threads),
            dict(home.pages.counts),
            home.threads.moves,
            self._session.unadapted,
            tuple(FaultRow(*where, count) for where, count in faults),
            tuple(UnlinkedRow(one, other, reason[:255]) for one, other, reason in home.links.failed()),
        )

    def _host_row(self, host: int, pages: int) -> HostRow:
        home = self._home
        condition = home.members.condition(host)
        here = [thread for thread in home.threads if thread.host == host]
        return HostRow(
            host,
            self._session.address(host),
            condition.value if condition is not None else "",
            len(here),
            sum(self._doing(thread) == "runs" for thread in here),
            pages,
            home.links.up(host),
        )

    def _thread_row(self, thread: Thread) -> ThreadRow:
        return ThreadRow(
            thread.tid,
            thread.host,
            self._doing(thread),
            thread.goroutine,
            thread.moves,
            thread.faults,
            thread.pinned,
        )

    def _doing(self, thread: Thread) -> str:
        if thread.where is Where.MOVES:
            return "moves"
        if self._home.futexes.sleeps(thread.tid):
            return "sleeps"
        call: int | None = thread.call
        if thread.where is Where.RUNS:
            call = None if thread.host else _find_call(self._session.pid, thread.tid)
        if call is None:
            return "runs"
        known = by_number("amd64").get(Sysno(call))
        return f"call {known.name if known is not None else call}"


def _find_call(pid: int, tid: int) -> int | None:
    """Return the number of the call that a thread here waits in; None if there is none. Source: proc(5)."""
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall", encoding="ascii") as file:
            number = file.read().split(maxsplit=1)[0]
    except OSError:  # it has ended
        return None
    return None if number in ("running", "-1") else int(number)
