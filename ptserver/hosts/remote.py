"""The stub host whose server is behind a connection: the program's calls travel, their results come back.

Where the program's resources are the server's, its standard streams are carried too, and the terminal's keys and
size; its descriptors here are only /dev/null.

A lost connection. A program with the stub hears of it (`hypercalls.WATCH`) and ends itself as a Go panic does, with
the traces of all goroutines, for which its writes to descriptor 2 go to this process's standard error; its other
calls are left waiting. Any other program is killed. Where the session is kept at the server, that happens only
when no other connection has come in time: until then calls are taken and kept (`ptserver.net.recovery`).

Not trusted: the server. Its results reach the memory of the program only where a call of the program offered room,
and nothing else of this machine.
"""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Collection
from typing import ClassVar

from ptserver.errors import ProtocolError
from ptserver.hosts.alone import serve_last_words, serve_signal_to_self
from ptserver.hosts.connected import ConnectedHost
from ptserver.hosts.direct import DirectCalls
from ptserver.hosts.emulator_calls import EmulatorCalls
from ptserver.hosts.endings import exit_of
from ptserver.hosts.file_calls import Asked
from ptserver.hosts.file_mappings import FileMappings
from ptserver.hosts.host import ThreadChange
from ptserver.hosts.known_files import KnownFiles
from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.hosts.policy import ABOUT_CLOCKS, CLOCKS_OF_DAY, FORKS, REACHES_SELF_ONLY, WRITES, observed_in
from ptserver.hosts.postponed import Postponed
from ptserver.hosts.processes import RemoteProcesses
from ptserver.hosts.signals import HostSignals
from ptserver.hosts.streams import HostStreams
from ptserver.hosts.telling import HostTelling
from ptserver.hosts.to_user import say
from ptserver.messages import (
    Cancel,
    Direct,
    DirectEnd,
    Executed,
    Exited,
    Goodbye,
    Message,
    Observed,
    Ping,
    Pong,
    ProgramExited,
    Refused,
    Result,
    Signal,
    Stopped,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamId,
    Syscall,
    ThreadEvent,
    ToHost,
    Unwatch,
    Watch,
    Welcome,
    WindowSize,
)
from ptserver.net.connection import Connection
from ptserver.net.keepalive import DEFAULT_SECONDS
from ptserver.terminal import user_terminal
from stepping.launch import Launched
from stepping.syscalls import Arch
from stepping.wait_status import WAIT_ALL

#: How long a program with the stub may take to print its goroutines after the connection was lost.
_PANIC_SECONDS = 10.0
#: How long the server may take to deliver the program's last output.
_GOODBYE_SECONDS = 30.0


class RemoteHost(ConnectedHost):
    """Serves a program over *connection*, after *welcome*; see the module's text.

    streams: the numbers of the standard streams that are carried. keepalive_seconds: how long the server may be
    silent, 0 for ever. lost: why the connection was lost, or None. kills_when_lost: kill a program then, even one
    that has the stub and would panic. server_time: whether the time of day is the server's; what other clocks measure
    is not.
    stops_like_a_job: whether a terminal's signals stop the program as they would natively.
    """

    stops_like_a_job: ClassVar[bool] = False

    def __init__(
        self,
        launched: Launched,
        signals: HostSignals,
        arch: Arch,
        welcome: Welcome,
        connection: Connection[ToHost],
        streams: Collection[StreamId],
        *,
        has_stub: bool,
        keepalive_seconds: float = DEFAULT_SECONDS,
    ) -> None:
        super().__init__(launched, signals, arch, welcome.interest, connection, keepalive_seconds)
        self.kills_when_lost = self.server_time = False
        self._emulator: EmulatorCalls | None = None
        self._welcome = welcome
        self._has_stub = has_stub
        self._in_flight: dict[int, PendingCall | None] = {}  # None: cancelled, an answer will still come
        self._children: RemoteProcesses | None = None
        if welcome.pid:
            self._main.id = welcome.pid
            self._children = RemoteProcesses(
                self._main,
                self._processes,
                self._pending,
                self._rows,
                self._loop,
                self._listener,
                self._answer,
                self._proceed,
                self._returned,
                self._process_ended,
                self._tell,
                lambda call: self._in_flight.get(call.id) is call,
                first_can_stop=self.stops_like_a_job,
            )
        self._observed = observed_in(self._rows.values(), welcome)
        self._asked: dict[int, Callable[[Result], None]] = {}  # calls that are made for the host itself
        self._mappings = FileMappings(self._listener, self._ask, self._proceed, self._answer, say)
        self._telling = HostTelling(self, self._loop, connection, lambda: self.lost is None)
        self._postponed = Postponed(connection, self._loop)
        self._known: KnownFiles | None = None
        self._direct: DirectCalls | None = None
        if welcome.ahead:
            self._known = KnownFiles(
                self.pid,
                welcome.pid or self.pid,
                welcome.streams,
                self._send_call,
                self._post_call,
                self._answer,
                self._make,
                lambda: next(self._ids),
                self._loop.expect,
                arch,
            )
            self._quick = self._known.quick
        if self._known is not None and launched.direct_table:
            self._direct = DirectCalls(
                self._main,
                launched.direct_table,
                self._loop,
                self._listener,
                self._known,
                connection.send,
                self._answer,
                self._make,
                self._ids,
                self._in_flight,
                self._asked,
                arch,
                lambda: self._children is None or self._children.is_alone,
            )
            self._quick = self._direct.quick
            self._mappings.unmaps = self._direct.unmapped
        self._goodbye = self._congested = False
        self._streams = HostStreams(streams, self._loop, connection.send)

    def serve_emulator(self) -> None:
        """Let the process here be an emulator of ours, with the program in it."""
        calls = (self._pending, self._in_flight, self._known, self._answer, self._tell, self.ask)
        self._emulator = EmulatorCalls(*calls, all_taken=self._welcome.resources == "server")

    def run(self) -> int:
        """Serve the program until it is gone and its output is delivered; return its wait status."""
        if self._connection.has_received:
            self._on_ready()
        self._telling.start_statistics(self._welcome.statistics_ms)
        status = super().run()
        if self._direct is not None and self.lost is None:
            self._direct.stop()
        self._mappings.finish()
        while self.lost is None and self._mappings.is_working:
            self._round()
        self._telling.program_ended(status)
        if self.lost is None:
            self._connection.send(Exited(*exit_of(status)))
            self._loop.later(_GOODBYE_SECONDS, self._goodbye_is_late)
        while self.lost is None and not self._goodbye:
            self._round()
        self._end_connection()
        while self._streams.wants_write:
            self._round()
        return status

    def close(self) -> None:
        """Kill the program if it still runs, and give up every descriptor."""
        self._telling.close()
        self.disconnect()
        self._mappings.close()
        if self._direct is not None:
            self._direct.close()
        if self._children is not None:
            self._children.kill()
            if self._wait_status is None:
                self._signal_program(signal.SIGKILL)
            self._reap_all()
        super().close()

    def _reap_all(self) -> None:
        """Wait for every process and seized thread, all of which are killed."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, WAIT_ALL)
                if pid == self.pid:
                    self._wait_status = status

    def _on_trace(self) -> None:
        if self._direct is not None:
            self._direct.stop()

    # Calls of the program.

    def _take_unknown(self, call: PendingCall) -> None:
        if self._emulator is None or not self._emulator.serve(call):
            super()._take_unknown(call)

    def _serve(self, call: PendingCall) -> None:
        row = call.row
        assert row is not None
        if self._children is not None and row.name not in self._served and self._children.serve(call):
            pass
        elif self.server_time and row.name in ABOUT_CLOCKS and call.args[0] & 0xFFFFFFFF not in CLOCKS_OF_DAY:
            self._proceed(call)
        elif self.lost is not None and self._emulator is not None:
            self._emulator.serve_last_words(call)
        elif self.lost is not None:
            serve_last_words(call, self._answer)
        elif self._children is None and row.name in REACHES_SELF_ONLY and row.name not in self._served:
            serve_signal_to_self(call, self.pid, self._answer, self._proceed)
        elif row.name in self._observed:
            args, ins, *_ = call.gathered
            self._connection.send(Observed(call.tid, call.process.id, row.name, args, ins, call.goid))
            self._proceed(call)
        else:
            self._forward(call)
            self._waits(call)

    def _waits(self, call: PendingCall) -> None:
        if self._children is not None:
            self._children.wait_with_mask(call)

    def _forward(self, call: PendingCall) -> None:
        """Have the server make *call*, unless its answer is known."""
        if self._mappings.serve(call):
            return
        if self._direct is not None and self._direct.serve(call):
            self._loop.expect()
            return
        if self._known is not None and self._known.serve(call):
            self._loop.expect()  # the next call
        else:
            self._make(call)

    def _make(self, call: PendingCall) -> None:
        """Have the session make *call*."""
        assert call.row is not None
        args, ins, outs, *_ = call.gathered
        self._in_flight[call.id] = call
        self._send_call(
            Syscall(call.id, call.tid, call.process.id, call.row.name, args, ins, outs, call.goid)
        )

    def _may_be_direct(self) -> bool:
        """Whether the program may make calls that nobody sees."""
        return self.trace is None and self._goids is None and self._main.remote is None

    def _send_call(self, message: Message) -> None:
        """Send a call, after all that the program has written before."""
        if self._direct is not None and type(message) is Syscall:
            self._direct.before(message)
        self._connection.send(message)

    def _post_call(self, message: Message) -> None:
        """Send a call that was answered here, in its turn, a little later."""
        if self._direct is not None and type(message) is Syscall and message.name in WRITES:
            self._direct.before(message)
        self._postponed.send(message)

    def _abandon(self, call: PendingCall) -> None:
        if self._known is not None and self._known.abandon(call):
            return
        if self._direct is not None and self._direct.abandon(call):
            return
        if self._in_flight.get(call.id) is call:
            self._in_flight[call.id] = None
            self._tell(Cancel(call.id))
        elif call.id in self._asked:
            self._tell(Cancel(call.id))
        elif self._children is not None:
            self._children.abandon(call)

    def _tell(self, message: Message) -> None:
        """Send *message* if there is still somebody to hear it."""
        if self.lost is None:
            self._connection.send(message)

    def _ask(self, asked: Asked, take: Callable[[Result], None]) -> None:
        """Have the server make a call, and give its result to *take*; nothing comes after the connection was lost."""
        call = asked.call
        if self._known is not None:
            self._known.forget()
        call_id, tid = (next(self._ids), asked.process.pid) if call is None else (call.id, call.tid)
        self._asked[call_id] = take
        _, name, args, ins, outs, _ = asked
        if self.lost is None:
            self._send_call(Syscall(call_id, tid, asked.process.id, name, args, ins, outs))

    # Messages of the server.

    def _take(self, message: ToHost) -> None:
        if type(message) is Result:
            self._take_result(message)
            return
        if self._known is not None and self._known.take(message):
            return
        match message:
            case Direct() | DirectEnd() if self._direct is not None:
                self._direct.take(message)
            case StreamData() | StreamCredit() | StreamEnd():
                self._streams.take(message)
            case Signal() if self._children is not None:
                self._children.deliver(message)
            case Signal():
                self._signal_program(message.signo)
            case Executed() if self._children is not None:
                self._children.executed(message.pid)
            case ProgramExited() if self._main.left:
                self._wait_status = message.signo if message.status is None else message.status << 8
            case Ping():
                self._connection.send(Pong(message.id))
            case Goodbye():
                self._goodbye = True
            case Refused():
                self._lose(f"the server ended the session: {message.message}")
            case Pong():
                pass
            case Watch() | Unwatch():
                self._telling.take(message)
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__} in mid-session")

    def _take_result(self, result: Result) -> None:
        take = self._asked.pop(result.id, None)
        if take is not None:
            take(result)
            if self._children is not None:
                self._children.deliver_deferred()
            return
        try:
            call = self._in_flight.pop(result.id)
        except KeyError:
            if self._known is not None and self._known.take_own(result):
                return
            raise ProtocolError(f"the server answered call {result.id}, which nobody made") from None
        if call is None:
            if self._known is not None:
                self._known.heard_late(result)
            return
        if self._direct is not None and self._direct.heard(call, result, may_begin=self._may_be_direct()):
            return
        if self._known is not None:
            self._known.heard(call, result)
        if (
            self._children is not None
            and call.row is not None
            and call.row.name in FORKS
            and not result.errno
        ):
            self._children.fork(call, result.value, result.outs)
        elif not result.proceed:
            self._answer(call, result.value, result.errno, result.outs)
        elif self._welcome.resources == "host" or (call.row is not None and call.row.concerns_host):
            self._proceed(call)
        else:
            raise ProtocolError(
                "the server sent a call back to the host, but has the program's resources itself"
            )
        if self._children is not None:
            self._children.deliver_deferred()

    def _goodbye_is_late(self) -> None:
        if self._is_waiting:
            self._loop.later(_GOODBYE_SECONDS, self._goodbye_is_late)
        else:
            self._lose("the server did not end the session in time")

    def _lose(self, reason: str) -> None:
        """Go on without the server: only to the end of the program."""
        if self.lost is not None:
            return
        if self._is_waiting:
            self._on_waiting(False)
        self.lost = reason
        self._quick = None
        if self._direct is not None:
            self._direct.pause(paused=True)
        self.keepalive.stop()
        self._loop.unwatch(self._connection.fileno())
        self._loop.watch(self._listener.fileno(), self._on_call)
        self._streams.stop()
        if self._wait_status is not None:
            return
        if self._main.left:
            self._wait_status = signal.SIGKILL
            return
        if self.kills_when_lost or not self._has_stub or self.pid not in self.stub.watches:
            self._signal_program(signal.SIGKILL)
            return
        for call in self.stub.tell_lost(reason):
            self._answer(call, 0, 0, {})
        if self._emulator is not None:
            self._emulator.lose()
        self._loop.later(_PANIC_SECONDS, lambda: self._signal_program(signal.SIGKILL))

    # Everything else that happens.

    def _program_stopped(self, signo: int) -> None:
        if self.lost is None:
            self._connection.send(Stopped(signo))
            self._connection.flush()
        super()._program_stopped(signo)

    def _process_ended(self, process: Process) -> None:
        super()._process_ended(process)
        self._mappings.forget(process)

    def _on_thread(self, tid: int, event: ThreadChange) -> None:
        self._tell(ThreadEvent(tid, event))

    def _on_exit(self) -> None:
        if self._children is not None:
            self._children.advance()
            self._children.first_ended()
        if not self._main.left:
            super()._on_exit()
        elif os.waitpid(self.pid, os.WNOHANG)[0]:
            self._loop.unwatch(self._pidfd)

    def _is_seized(self, tid: int) -> bool:
        return self._children is not None and self._children.is_seized(tid)

    def _follow_stop(self) -> None:
        if self._advance():
            super()._follow_stop()

    def _advance(self) -> bool:
        """Go on with forks; return whether the stops of the first process are its own, not a fork's."""
        if self._children is not None:
            self._children.advance()
        return self._children is None or not self._children.is_held(self.pid)

    def _signal_program(self, signo: int) -> None:
        if self._main.left:
            self._tell(Signal(signo, self._main.id))
        else:
            super()._signal_program(signo)

    def _on_window_size(self) -> None:
        terminal = user_terminal()
        if terminal is not None:
            self._tell(WindowSize(terminal.rows, terminal.columns))

    def _shares_terminal(self) -> bool:
        return False

    def _before_waiting(self) -> None:
        """Send what is to be sent, and ask for the events that matter now."""
        connection = self._connection
        if self.lost is None and not self._postponed.may_wait:
            if connection.wants_write:
                self._loop.expect()  # results
            sent = connection.flush()
            if sent != self._all_sent:
                self._all_sent = sent
                events = select.POLLIN if sent else select.POLLIN | select.POLLOUT
                self._loop.watch(connection.fileno(), self._on_ready, events)
            if connection.congested != self._congested:
                self._congested = connection.congested
                self._streams.changed()
                if self._direct is not None:
                    self._direct.pause(paused=self._congested)
                if self._congested:
                    self._loop.unwatch(self._listener.fileno())
                else:
                    self._loop.watch(self._listener.fileno(), self._on_call)
        self._streams.watch(congested=self._congested)
