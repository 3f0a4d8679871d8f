"""The process of one session: a runtime server's instance and the program's shadow, in one synchronous loop.

It is forked for one connection, reads the hello, and ends with the session. Calls arrive in `Syscall` messages;
the server's method of that name is asked first; what it lets proceed, and everything it has no method for, the
shadow makes: at once on this thread, or on a worker's if the call may wait.

Not trusted: the stub host. Before its hello is accepted it has a few seconds and 64 KiB; afterwards what it may
send is bounded by the messages' types, and anything else ends this process, which is its own alone.
Thread rules: the main thread; workers run only `ptserver.execute.execute`.
"""

import errno
import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ptserver.call import Call
from ptserver.connection import Connection
from ptserver.errors import ProtocolError, PtServerError
from ptserver.execute import Executed
from ptserver.messages import (
    Cancel,
    Exited,
    Goodbye,
    Hello,
    Observed,
    Ping,
    Pong,
    Result,
    Signal,
    StreamCredit,
    StreamData,
    StreamEnd,
    Syscall,
    ThreadEvent,
    ToServer,
    WindowSize,
)
from ptserver.outcomes import Delay, Done, Fail, OpenBytes, Outcome, Proceed, Return
from ptserver.server import RuntimeServer
from ptserver.session import Session
from ptserver.session_log import Log
from ptserver.session_stdio import Stdio
from ptserver.shadow import Shadow
from ptserver.shadow_descriptors import Descriptors
from ptserver.shadow_workers import RETRY_SECONDS, Workers
from stepping.syscalls import SYSCALLS
from stepping.syscalls import Syscall as Row

#: Signals that the program's terminal sends to this process, its controlling process, for the program.
_TERMINAL_SIGNALS = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP, signal.SIGWINCH})
#: How long calls that wait may take to return when the program is gone.
_INTERRUPT_SECONDS = 2.0
#: More calls in flight than any program has threads waiting.
_MAX_WAITING = 16384


class _Entry(NamedTuple):
    """What to do with calls of one name. method: the server's, if it has one; errno: set if none is made."""

    row: Row
    method: Callable[[Call], Outcome | None] | None
    observes: bool
    errno: int


class _InFlight(NamedTuple):
    """A call that waits: for a worker, or for its time. call: set if the server wants to see its result."""

    call: Call | None
    then: Callable[[Done], Outcome | None] | None
    row: Row


class SessionLoop:
    """Runs one session over *connection*, after its handshake."""

    def __init__(
        self,
        connection: Connection[ToServer],
        hello: Hello,
        server: RuntimeServer,
        session_id: str,
        descriptors: Descriptors,
        log: Log,
    ) -> None:
        self._connection = connection
        self._send = connection.send
        self._server = server
        self._log = log
        self.session = Session(
            session_id,
            hello.program,
            hello.machine,
            "server",
            log=log,
            send_signal=lambda signo: self._send(Signal(signo)),
            keep_descriptor=descriptors.keep,
        )
        self._descriptors = descriptors
        self._workers: Workers[int] = Workers(descriptors.keep)
        self._shadow = Shadow(descriptors, log, self._workers.retire_idle)
        self._signals = _catch_signals(descriptors)
        self._stdio = Stdio(hello, descriptors, connection.send)
        self._interest = type(server).declared_interest()
        self._watches_results = type(server).finished is not RuntimeServer.finished
        self._entries: dict[str, _Entry | None] = {}
        self._waiting: dict[int, _InFlight] = {}
        self._delayed: list[tuple[float, int, int, Outcome | None]] = []
        self._ids = itertools.count()
        self._poll = select.poll()
        self._events: dict[int, int] = {}
        self._handlers: dict[int, Callable[[], None]] = {}
        self._ended = False
        self._takers: dict[type, Callable[[Any], None]] = {
            Syscall: self._take_call,
            Observed: self._take_observed,
            Cancel: self._take_cancel,
            StreamData: self._take_data,
            StreamCredit: self._take_credit,
            StreamEnd: self._take_end,
            WindowSize: self._stdio.resize,
            ThreadEvent: self._take_thread,
            Exited: self._take_exited,
            Ping: self._take_ping,
            Pong: lambda pong: None,
        }
        self._exited: Exited | None = None
        descriptors.close_programs(3)

    def run(self) -> None:
        """Serve the program until it is gone and its output is delivered.

        Raises:
            ConnectionLostError, ProtocolError: the stub host is gone, or cannot be served any more.
            Exception: whatever the server's methods raise, but OSError.
        """
        self._watch(self._signals, self._on_signal)
        self._watch(self._workers.fileno(), self._on_finished)
        try:
            self._server.session_started(self.session)
            while not self._ended:
                self._round()
            self._finish()
        finally:
            self._server.session_ended(self.session)
        self._send(Goodbye())

    def _round(self) -> None:
        connection = self._connection
        sent = connection.flush()
        fd = connection.fileno()
        self._ask(
            fd,
            (0 if connection.congested else select.POLLIN) | (0 if sent else select.POLLOUT),
            self._on_message,
        )
        stdio = self._stdio
        for outgoing in stdio.outgoing.values():
            wanted = outgoing.wants_read and not connection.congested
            self._ask(outgoing.fd, select.POLLIN if wanted else 0, outgoing.on_readable)
        if stdio.incoming is not None:
            self._ask(
                stdio.incoming.fd,
                select.POLLOUT if stdio.incoming.wants_write else 0,
                stdio.incoming.on_writable,
            )
        handlers = self._handlers
        for ready, _ in self._poll.poll(self._timeout_ms()):
            handler = handlers.get(ready)
            if handler is not None:
                handler()
        if self._delayed:
            self._release_delayed()
        if self._workers.is_interrupting:
            self._workers.interrupt_again()

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._ask(fd, select.POLLIN, handler)

    def _ask(self, fd: int, events: int, handler: Callable[[], None]) -> None:
        """Have *handler* called for *events* of *fd*; never again if there are none."""
        before = self._events.get(fd, 0)
        if before == events:
            return
        self._events[fd] = events
        if events:
            self._handlers[fd] = handler
            self._poll.register(fd, events)
        else:
            del self._handlers[fd]
            self._poll.unregister(fd)

    def _timeout_ms(self) -> float | None:
        if self._workers.is_interrupting:
            return RETRY_SECONDS * 1000
        if self._delayed:
            return max(0.0, self._delayed[0][0] - time.monotonic()) * 1000
        return None

    # What the stub host says.

    def _on_message(self) -> None:
        takers = self._takers
        for message in self._connection.receive():
            taker = takers.get(type(message))
            if taker is None:
                raise ProtocolError(f"the host sent {type(message).__name__} in mid-session")
            taker(message)

    def _take_observed(self, message: Observed) -> None:
        entry = self._entry(message.name)
        if entry is not None:
            call = Call(
                self.session,
                0,
                message.tid,
                message.pid,
                entry.row,
                message.args,
                message.ins,
                {},
                message.goid,
            )
            (entry.method or self._server.observe)(call)

    def _take_cancel(self, message: Cancel) -> None:
        call_id = message.id
        if call_id in self._workers:
            self._workers.interrupt(call_id)
        elif call_id in self._waiting:
            self._settle(call_id, (0, errno.EINTR, {}))

    def _take_data(self, message: StreamData) -> None:
        if message.stream or self._stdio.incoming is None:
            raise ProtocolError(
                f"the host sent data of stream {message.stream}, which is not carried that way"
            )
        self._stdio.incoming.receive(message.data)

    def _take_credit(self, message: StreamCredit) -> None:
        if message.stream in self._stdio.outgoing:
            self._stdio.outgoing[message.stream].add_credit(message.size)

    def _take_end(self, message: StreamEnd) -> None:
        if not self._stdio.end(message.stream):
            raise ProtocolError(f"the host ended stream {message.stream}, which is not carried")

    def _take_thread(self, message: ThreadEvent) -> None:
        self._server.thread_event(self.session, message.tid, message.event)

    def _take_ping(self, message: Ping) -> None:
        self._send(Pong(message.id))

    def _take_exited(self, message: Exited) -> None:
        self._exited = message
        self._ended = True

    # Calls.

    def _entry(self, name: str) -> _Entry | None:
        """Return what to do with calls of *name*; None if there is no such call."""
        try:
            return self._entries[name]
        except KeyError:
            pass
        row = SYSCALLS.get(name)
        if row is None:
            return None  # not remembered: a hostile host has many names
        interest = self._interest.get(name)
        has_method = interest is not None and hasattr(type(self._server), name)
        method = getattr(self._server, name) if has_method else None
        observes = interest == "observe"
        if observes and method is None:
            method = self._server.observe
        failure = errno.ENOSYS if self._shadow.refuses(row, quietly=method is not None) else 0
        entry = self._entries[name] = _Entry(row, method, observes, failure)
        return entry

    def _take_call(self, message: Syscall) -> None:
        call_id = message.id
        entry = self._entry(message.name)
        if entry is None:
            self._log(f"refused {message.name!r} with ENOSYS: there is no such syscall")
            self._send(Result(call_id, 0, errno.ENOSYS))
            return
        if call_id in self._waiting:
            raise ProtocolError(f"the host sent call {call_id} twice")
        if len(self._waiting) >= _MAX_WAITING:
            raise ProtocolError(
                f"the host has {_MAX_WAITING} calls in flight, more than a program has threads"
            )
        if entry.method is None and not self._watches_results:
            self._make(call_id, entry, None, None, message.args, message.ins, message.outs, message.pid)
            return
        call = Call(
            self.session,
            call_id,
            message.tid,
            message.pid,
            entry.row,
            message.args,
            message.ins,
            message.outs,
            message.goid,
        )
        outcome: Outcome | None = None
        if entry.method is not None:
            try:
                outcome = entry.method(call)
            except OSError as error:
                outcome = Fail(error.errno or errno.EIO)
            if entry.observes:
                outcome = None
        self._resolve(call, entry, outcome)

    def _resolve(self, call: Call, entry: _Entry, outcome: Outcome | None) -> None:
        """Carry out what the server's method answered."""
        match outcome:
            case None:
                self._make(call.id, entry, call, None, call.args, call.ins, call.outs, call.pid)
            case Proceed(changes=changes, then=then):
                args, ins = call.changed(changes) if changes else (call.args, call.ins)
                self._make(call.id, entry, call, then, args, ins, call.outs, call.pid)
            case Return(value=value, outs=outs):
                self._answer(call.id, call, (value, 0, call.outs_by_index(outs)))
            case Fail(errno=failure):
                self._answer(call.id, call, (0, failure, {}))
            case OpenBytes(data=data, flags=flags):
                self._answer(call.id, call, self._shadow.open_bytes(data, flags))
            case Delay(seconds=seconds, outcome=later):
                self._waiting[call.id] = _InFlight(call, None, call.syscall)
                due = time.monotonic() + max(seconds, 0.0)
                heapq.heappush(self._delayed, (due, next(self._ids), call.id, later))
            case _:
                raise TypeError(f"{type(self._server).__name__}.{call.name} returned {outcome!r}, no outcome")

    def _make(
        self,
        call_id: int,
        entry: _Entry,
        call: Call | None,
        then: Callable[[Done], Outcome | None] | None,
        args: tuple[int, int, int, int, int, int],
        ins: dict[int, bytes],
        outs: dict[int, int],
        pid: int,
    ) -> None:
        """Let the shadow make the call, and answer it then."""
        row, shadow = entry.row, self._shadow
        if entry.errno:
            shadow.refuses(row)
            self._answer(call_id, call, (0, entry.errno, {}))
        elif row.may_wait and shadow.may_wait(row, args, ins):
            ready = shadow.poll(row, args, ins, outs)
            if ready is not None:
                self._complete(call_id, call, then, row, ready)
                return
            self._waiting[call_id] = _InFlight(call, then, row)
            self._workers.start(call_id, shadow.work(row, args, ins, outs))
        else:
            self._complete(call_id, call, then, row, shadow.execute(row, args, ins, outs, pid))

    def _complete(
        self,
        call_id: int,
        call: Call | None,
        then: Callable[[Done], Outcome | None] | None,
        row: Row,
        executed: Executed,
    ) -> None:
        """Answer a call that was made, or do what *then* wants instead."""
        if executed[1] == errno.EPIPE and row.may_wait:
            self._send(Signal(signal.SIGPIPE))  # this process ignores its own
        if then is not None:
            assert call is not None
            value, failure, outs = executed
            outcome = then(Done(value, failure, call.outs_by_name(outs)))
            if outcome is not None:
                entry = self._entry(call.name)
                assert entry is not None
                self._resolve(call, entry, outcome)
                return
        self._answer(call_id, call, executed)

    def _answer(self, call_id: int, call: Call | None, executed: Executed) -> None:
        value, failure, outs = executed
        self._send(Result(call_id, value, failure, outs))
        if self._watches_results and call is not None:
            self._server.finished(call, Done(value, failure, call.outs_by_name(outs)))

    def _settle(self, call_id: int, executed: Executed) -> None:
        """Answer a call that waited."""
        waiting = self._waiting.pop(call_id, None)
        if waiting is not None:
            self._complete(call_id, waiting.call, waiting.then, waiting.row, executed)

    def _on_finished(self) -> None:
        for call_id, executed in self._workers.take_finished():
            self._settle(call_id, executed)

    def _release_delayed(self) -> None:
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            _, _, call_id, outcome = heapq.heappop(self._delayed)
            waiting = self._waiting.pop(call_id, None)
            if waiting is not None and waiting.call is not None:  # it was not cancelled meanwhile
                entry = self._entry(waiting.call.name)
                assert entry is not None
                self._resolve(waiting.call, entry, outcome)

    # The rest of a session's life.

    def _on_signal(self) -> None:
        for number in os.read(self._signals, 4096):
            if number in _TERMINAL_SIGNALS:
                self._send(Signal(number))
            elif number == signal.SIGTERM:
                raise ServerStopsError("the server is stopping")

    def _finish(self) -> None:
        """The program is gone: end its calls, close what it had open, and deliver the rest of its output."""
        assert self._exited is not None
        self._server.exited(self.session, self._exited.status, self._exited.signo)
        self._waiting.clear()
        self._delayed.clear()
        deadline = time.monotonic() + _INTERRUPT_SECONDS
        if len(self._workers):
            self._workers.interrupt_all()
        while len(self._workers) and time.monotonic() < deadline:
            self._round()
        self._stdio.end_input()
        self._descriptors.close_programs()
        while not all(stream.ended for stream in self._stdio.outgoing.values()):
            self._round()


class ServerStopsError(PtServerError):
    """The server was told to end."""


def _catch_signals(descriptors: Descriptors) -> int:
    """Return a descriptor from which the numbers of signals that come are read, a byte each."""
    reading, writing = map(descriptors.keep, os.pipe())
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for signo in (*_TERMINAL_SIGNALS, signal.SIGTERM):
        signal.signal(signo, _noted)
    for signo in (signal.SIGTTOU, signal.SIGTTIN, signal.SIGPIPE, signal.SIGIO):
        signal.signal(signo, signal.SIG_IGN)
    return reading


def _noted(_signo: int, _frame: object) -> None:
    """Do nothing: the number has been written to the wakeup descriptor."""
