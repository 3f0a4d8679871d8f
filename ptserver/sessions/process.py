"""The process of one session: a runtime server's instance and the program's shadow, in one synchronous loop.

It is forked for one connection, reads the hello, and ends with the session. Calls arrive in `Syscall` messages;
the server's method of that name is asked first; what it lets proceed, and everything it has no method for, the
shadow makes: at once on this thread, or on a worker's if the call may wait.

Not trusted: the stub host. Before its hello is accepted it has a few seconds and 64 KiB; afterwards what it may
send is bounded by the messages' types, and anything else ends this process, which is its own alone.
Thread rules: the main thread; workers run only `ptserver.shadow.execute.execute`.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from ptserver.confinement.gate import Gate
from ptserver.errors import ConnectionLostError, ProtocolError, PtServerError, RefusedError
from ptserver.hosts.endings import exit_of
from ptserver.messages import (
    Ahead,
    Cancel,
    Direct,
    DirectBegin,
    DirectEnd,
    Executed,
    Exited,
    Fetch,
    Goodbye,
    GoroutineEvents,
    GoroutineStatistics,
    Hello,
    MemoryAtomic,
    MemoryDeclare,
    MemoryGet,
    MemorySet,
    Message,
    Observed,
    Ping,
    PlaceGoroutine,
    Pong,
    ProcessExited,
    ProcessStopped,
    ProgramExited,
    Refused,
    Relay,
    Reopened,
    Result,
    Signal,
    SignalState,
    Stopped,
    StreamCredit,
    StreamData,
    StreamEnd,
    Syscall,
    Taken,
    ThreadEvent,
    ToServer,
    WatchedCalls,
    WatchedRows,
    WatchEnded,
    WindowSize,
)
from ptserver.net.connection import Connection
from ptserver.net.keepalive import DEFAULT_SECONDS, KeepAlive
from ptserver.net.lasting import LastingConnection
from ptserver.net.poll_loop import PollLoop
from ptserver.net.recovery import Recovery, Source
from ptserver.net.urgency import be_ordinary
from ptserver.offered.file_transfer import OfferedFile
from ptserver.remote_memory.shared import SharedVariables
from ptserver.server import RuntimeServer
from ptserver.session import Session
from ptserver.sessions.calls import Calls
from ptserver.sessions.children import Children
from ptserver.sessions.guard import end_others
from ptserver.sessions.keeper import become_program, program_status
from ptserver.sessions.lasting_files import LastingFiles
from ptserver.sessions.memory import MemoryCalls
from ptserver.sessions.relays import SessionRelays
from ptserver.sessions.stdio import OwnStdio, Stdio
from ptserver.sessions.streams import SessionStreams
from ptserver.sessions.watches import SessionWatches
from ptserver.shadow.descriptors import Descriptors
from ptserver.shadow.exec import reason_not_to_execute
from ptserver.shadow.process import ShadowState
from ptserver.shadow.signals import ShadowSignals, signal_message
from ptserver.shadow.state import Shadow
from ptserver.shadow.waiting import Args
from ptserver.shadow.workers import Workers

_STOPPING = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
#: How long a host may take to say that it has a session's last words, if it says so.
_GOODBYE_SECONDS = 10.0
#: How long what the program has written last may take to be written, if somebody else has filled its way.
_DELIVERY_SECONDS = 20.0
#: How long calls that wait may take to return when the program is gone.
_INTERRUPT_SECONDS = 2.0


class SessionLoop:
    """Runs one session over *connection*, after its handshake."""

    def __init__(
        self,
        connection: Connection[ToServer],
        hello: Hello,
        server: RuntimeServer,
        session_id: str,
        descriptors: Descriptors,
        log: Callable[[str], None],
        stdio: Stdio | OwnStdio,
        offered: OfferedFile | None = None,
        watched_at: socket.socket | None = None,
        gate: Gate | None = None,
        variables: SharedVariables | None = None,
        *,
        guard: socket.socket | None = None,
        keepalive_seconds: float = DEFAULT_SECONDS,
        ahead: bool = False,
        wait_seconds: float = 0.0,
        source: Source | None = None,
    ) -> None:
        """Make a session's state of this process's.

        guard: the socket of the guard that is this process's parent, if it has one.

        offered: the program, if this process offered it to its host: what belongs to this process, its descriptors
        and the signals that it is sent, is the program's then. gate: judges what its sockets do. variables: the
        remote ones of all sessions, if the welcome has `memory`. keepalive_seconds: how long the host may be silent,
        0 for ever. watched_at: the Unix socket at which it can be watched. ahead: tell the host what it may ask next.
        source: where another connection comes from when this one is lost, which is waited for *wait_seconds*.
        """
        self._connection = connection
        self._lasting: LastingFiles | None = None
        self._server = server
        self._log = log
        self.session = Session(
            session_id,
            hello.program,
            hello.machine,
            "host" if hello.spread else "server",
            log=log,
            send_signal=lambda signo: self._send(Signal(signo)),
            keep_descriptor=descriptors.keep,
        )
        self._descriptors = descriptors
        self._guard = guard
        self._guard_pid = os.getppid() if guard is not None else 0
        self._pid = os.getpid()
        self._is_keeper = False
        self._workers: Workers[int] = Workers(descriptors.keep)
        self._signals = ShadowSignals(descriptors.keep)
        log = log if offered is None else _unsaid
        self._shadow = Shadow(
            descriptors,
            log,
            self._signals,
            self._workers.retire_idle,
            os.fsencode(hello.program.path),
            emulates=hello.program.emulated,
        )
        self._offered = offered
        self._loop = PollLoop()
        self._keepalive = KeepAlive(connection, self._loop.later, keepalive_seconds, self._broke)
        self._recovery: Recovery | None = None
        if source is not None and isinstance(connection, LastingConnection):
            self._recovery = Recovery(
                connection,
                source,
                wait_seconds,
                self._loop,
                self._keepalive,
                resumed=self._resumed,
                lost=_raise_lost,
                say=self._log,
            )
        self._relays = SessionRelays(self._loop, connection.send, descriptors)
        self._streams = SessionStreams(stdio, self._relays, self._loop)
        self._state = ShadowState(self.session, self._shadow, descriptors, log, gate, hello.server_time)
        self._children = Children(self._state, self._loop, self._send, self._relays)
        self._calls = Calls(
            self.session,
            server,
            self._shadow,
            self._workers,
            self._send,
            self._loop,
            descriptors.copy,
            gate,
            fork=self._children.fork,
            become=self._become,
            take_signals=self._on_signal,
            elsewhere=self._children,
            keeps_time=hello.server_time,
        )
        self._children.answer_to(self._calls)
        if ahead:
            self._lasting = LastingFiles(
                connection.send, descriptors.keep, descriptors.program_limit, self._loop.later
            )
            self._calls.work_ahead(descriptors.keep, descriptors.program_limit, self._lasting)
        self._ended = False
        self._connection_events = 0
        self._takers: dict[type, Callable[[Any], None]] = {
            Syscall: self._calls.take_call,
            Observed: self._calls.take_observed,
            Taken: self._calls.take_taken,
            Cancel: self._calls.take_cancel,
            StreamData: self._streams.take_data,
            StreamCredit: self._streams.take_credit,
            StreamEnd: self._streams.take_end,
            Relay: self._take_relay,
            WindowSize: stdio.resize,
            ThreadEvent: self._take_thread,
            Exited: self._take_exited,
            Refused: self._take_refused,
            Stopped: self._take_stopped,
            ProcessExited: self._take_for_process,
            ProcessStopped: self._take_for_process,
            SignalState: self._take_for_process,
            Signal: self._take_signal,
            GoroutineStatistics: self._take_statistics,
            GoroutineEvents: self._take_goroutines,
            Ping: self._take_ping,
            Pong: lambda pong: None,
        }
        if self._calls.direct is not None:
            direct = self._calls.direct
            assert self._lasting is not None
            self._takers[Reopened] = self._lasting.reopened
            self._takers |= {DirectBegin: direct.begin, Direct: direct.take, DirectEnd: direct.end}
        if variables is not None:
            memory = MemoryCalls(self.session, server, variables.adopt(), self._send, connection.flush)
            self._takers |= dict.fromkeys((MemoryDeclare, MemoryGet, MemorySet, MemoryAtomic), memory.take)
        self._watches: SessionWatches | None = None
        if watched_at is not None:
            self._watches = SessionWatches(watched_at, self._loop, connection.send, descriptors.keep)
            take = self._watches.take
            self._takers |= {WatchedCalls: take, WatchedRows: take, WatchEnded: take}
        self._exited: Exited | None = None
        if offered is None:
            descriptors.close_programs(3)
        else:
            self._takers[Fetch] = self._take_fetch

    def run(self) -> Exited:
        """Serve the program until it is gone and its output is delivered; return how it ended.

        Raises:
            ConnectionLostError, ProtocolError: the stub host is gone, or cannot be served any more.
            Exception: whatever the server's methods raise, but OSError.
        """
        self._loop.watch(self._signals.fileno(), self._on_signal)
        if self._guard is not None:
            self._loop.watch(self._guard.fileno(), self._on_guard)
        self._loop.watch(self._workers.fileno(), self._calls.take_finished)
        try:
            self._server.session_started(self.session)
            if self._connection.has_received:
                self._on_message()
            while not self._ended:
                self._round()
            self._finish()
        finally:
            if self._watches is not None:
                self._watches.finish()
            self._server.session_ended(self.session)
        self._send(Goodbye())
        self._await_acknowledgement()
        assert self._exited is not None
        return self._exited

    def _await_acknowledgement(self) -> None:
        """Go on until the host has the last of the program's output, if it may have to be sent again."""
        connection = self._connection
        if self._recovery is None or not isinstance(connection, LastingConnection):
            return
        deadline = time.monotonic() + _GOODBYE_SECONDS
        self._loop.later(_GOODBYE_SECONDS, lambda: None)
        while not connection.has_all_arrived and time.monotonic() < deadline:
            self._round()

    def _send(self, message: Message) -> None:
        """Send *message*, after what makes the host forget files that have changed: it may tell of that.

        An `Ahead` tells the program nothing before the result does that follows. What executed programs have written
        to the host's descriptors comes before, too.
        """
        if self._lasting is not None and type(message) is not Ahead:
            self._lasting.look()
        if len(self._relays):
            self._relays.look()
            if type(message) is Result:
                self._relays.answered(message.id)
        self._connection.send(message)

    def _round(self) -> None:
        self._loop.round(self._before_waiting)

    def _before_waiting(self) -> None:
        """Send what is to be sent, and ask for the events that matter now."""
        if self._watches is not None:
            self._watches.before_waiting()
        connection = self._connection
        if connection.wants_write:
            self._loop.expect()  # the calls that follow these results
        events = 0 if connection.flush() else select.POLLOUT
        if not connection.congested:
            events |= select.POLLIN
        if self._calls.direct is not None:
            self._calls.direct.pause(paused=connection.congested)
        if self._recovery is not None and self._recovery.is_waiting:
            events = self._connection_events
        if events != self._connection_events:
            self._connection_events = events
            self._loop.watch(connection.fileno(), self._on_message, events)
        self._streams.watch(congested=connection.congested)

    # What the stub host says.

    def _broke(self, reason: str) -> None:
        """Go on without the connection if another may come. Raises: ConnectionLostError if none will."""
        if self._recovery is None:
            _raise_lost(reason)
        else:
            self._recovery.broke(reason)

    def _resumed(self) -> None:
        self._connection_events = 0

    def _on_message(self) -> None:
        takers = self._takers
        try:
            messages = self._connection.receive()
        except ConnectionLostError as error:
            self._broke(str(error))
            return
        for message in messages:
            taker = takers.get(type(message))
            if taker is None:
                raise ProtocolError(f"the host sent {type(message).__name__} in mid-session")
            taker(message)

    def _take_thread(self, message: ThreadEvent) -> None:
        self._server.thread_event(self.session, message.tid, message.event)

    def _take_statistics(self, message: GoroutineStatistics) -> None:
        self._server.goroutine_statistics(self.session, message)

    def _take_goroutines(self, message: GoroutineEvents) -> None:
        if message.lost:
            self._log(f"{message.lost} events of goroutines are missing")
        for event in message.events:
            host = self._server.goroutine_event(self.session, event)
            if host is not None:
                self._send(PlaceGoroutine(event.goid, host))

    def _take_ping(self, message: Ping) -> None:
        self._send(Pong(message.id))

    def _take_exited(self, message: Exited) -> None:
        self._exited = message
        self._ended = True

    def _take_refused(self, message: Refused) -> None:
        raise RefusedError(message.code, f"the host ended the session: {message.message}")

    def _take_fetch(self, message: Fetch) -> None:
        assert self._offered is not None
        self._send(self._offered.answer(message))

    def _take_stopped(self, message: Stopped) -> None:
        """Expect nothing of a host that stops with its program.

        If the program was offered, stop this process, as which its user's shell knows it. SIGCONT wakes both.
        """
        if self._offered is None:
            self._keepalive.suspend()
            return
        self._connection.flush()
        self._signals.stop(message.signo if message.signo in _STOPPING else int(signal.SIGSTOP))

    # The program's processes.

    def _take_for_process(self, message: ProcessExited | ProcessStopped | SignalState) -> None:
        if message.pid != self._pid:
            self._children.pass_on(message.pid, message)
        elif type(message) is SignalState:
            self._signals.set_state(message)

    def _take_relay(self, message: Relay) -> None:
        self._relays.announce(message)
        if message.pid == self._pid:
            self._shadow.relays.want(message)
        else:
            self._children.pass_on(message.pid, message)

    def _take_signal(self, message: Signal) -> None:
        if self._is_keeper and message.pid == self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, message.signo)

    def _become(self, call_id: int, name: str, args: Args, ins: dict[int, bytes]) -> int | None:
        """Let the program's first process, which is this one, execute another program; see `Calls`."""
        failure = reason_not_to_execute(name, ins)
        if failure:
            return failure
        self._connection.flush()
        be_ordinary()  # what is executed has no remote variables
        self._shadow.relays.make(call_id, self._relays.take_own)
        if self._guard is None:  # this process's user waits for it, and nothing else has to go on
            return self._shadow.become(name, args, ins)
        failed = become_program(lambda: self._shadow.become(name, args, ins), self._descriptors, self._guard)
        if failed is None:
            self._is_keeper = True
            self._workers.start_anew()
            self._calls.start_anew()
            self._shadow.relays.forget()
            self._send(Executed(self._pid))
            self._relays.executed(self._pid)
        return failed

    # The rest of a session's life.

    def _on_signal(self) -> None:
        for received in self._signals.receive():
            if received.signo == signal.SIGTERM and received.pid == self._guard_pid and self._guard_pid:
                raise ServerStopsError("the server is stopping")
            if not self._is_keeper:
                self._send(signal_message(self._pid, received))

    def _on_guard(self) -> None:
        assert self._guard is not None
        status = program_status(self._guard)
        if status is None:
            raise ServerStopsError("the session's guard is gone")
        self._send(ProgramExited(*exit_of(status)))

    def _finish(self) -> None:
        """The program is gone: end its calls, close what it had open, and deliver the rest of its output."""
        assert self._exited is not None
        self._server.exited(self.session, self._exited.status, self._exited.signo)
        if self._guard is not None and (self._children or self._is_keeper):
            end_others(self._guard)
        deadline = time.monotonic() + _DELIVERY_SECONDS
        while self._calls.writes_behind and time.monotonic() < deadline:
            self._round()
        self._calls.end()
        deadline = time.monotonic() + _INTERRUPT_SECONDS
        while len(self._workers) and time.monotonic() < deadline:
            self._round()
        self._descriptors.close_programs()
        while not self._streams.finish():
            self._round()


class ServerStopsError(PtServerError):
    """The server was told to end."""


def _unsaid(text: str) -> None:
    """Say what a user can do nothing about only if asked to: it would be among the program's own output."""
    if os.environ.get("PTSERVER_DEBUG"):
        print(f"ptserver: {text}", file=sys.stderr)


def _raise_lost(reason: str) -> None:
    raise ConnectionLostError(reason)
