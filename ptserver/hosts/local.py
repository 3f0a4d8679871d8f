"""The stub host whose server runs in this process and whose resources are this machine's own.

Only the calls that the server names arrive. One that it lets proceed unchanged is made by the thread itself; with
changed arguments, or if the server wants to see the result, it is made here on the program's descriptors
(`ptserver.hosts.proxy`).

Not trusted: the program. A server that decides by what a pointer leads to (a path, a buffer) and then lets the call
proceed unchanged decides by a copy: the program may change the original before its kernel reads it. Registers
cannot change.
"""

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator, Sequence

from ptserver.call import Call
from ptserver.errors import PtServerError, ServerMistakeError
from ptserver.hosts.endings import exit_of
from ptserver.hosts.host import Host, ThreadChange
from ptserver.hosts.pending_call import PendingCall
from ptserver.hosts.proxy import Proxy, can_make, closes_on_exec
from ptserver.hosts.signals import HostSignals
from ptserver.messages import GoroutineStatistics
from ptserver.outcomes import Delay, Done, Fail, OpenBytes, Outcome, Proceed, Return
from ptserver.server import RuntimeServer
from ptserver.session import Session
from ptserver.shadow.execute import Executed
from ptserver.shadow.workers import RETRY_SECONDS
from stepping.errors import NotificationGoneError
from stepping.launch import Launched
from stepping.syscalls import Arch, ResultKind, Syscall
from stepping.syscalls.marshal import BadArgumentError, scatter

_PAIR = struct.Struct("=ii")


class LocalHost(Host):
    """Serves a program by the methods of *server*."""

    def __init__(
        self,
        launched: Launched,
        signals: HostSignals,
        arch: Arch,
        server: RuntimeServer,
        session: Session,
    ) -> None:
        interest = server.declared_interest()
        super().__init__(launched, signals, arch, interest)
        self._server = server
        self._session = session
        self._methods: dict[str, Callable[[Call], Outcome | None]] = {
            name: getattr(server, name, server.observe) for name in interest
        }
        self._observed = frozenset(name for name, wanted in interest.items() if wanted == "observe")
        self._proxy = Proxy()
        self._making: dict[int, tuple[PendingCall, Call, Proceed]] = {}  # calls that wait, by id
        self._loop.watch(self._proxy.fileno(), self._on_made)
        self._sees_results = type(server).finished is not RuntimeServer.finished

    def run(self) -> int:
        """Serve the program until it is gone; return its wait status, as waitpid(2) gives it.

        Raises:
            ServerMistakeError: the server failed; the program still runs.
        """
        with self._blaming("session_started"):
            self._server.session_started(self._session)
        if self._server.statistics_seconds:
            self.start_statistics(self._server.statistics_seconds, self._give_statistics)
        try:
            status = super().run()
            with self._blaming("exited"):
                self._server.exited(self._session, *exit_of(status))
        finally:
            with self._blaming("session_ended"):
                self._server.session_ended(self._session)
        return status

    def _give_statistics(self, statistics: GoroutineStatistics) -> None:
        with self._blaming("goroutine_statistics"):
            self._server.goroutine_statistics(self._session, statistics)

    def _on_thread(self, tid: int, event: ThreadChange) -> None:
        with self._blaming("thread_event"):
            self._server.thread_event(self._session, tid, event)

    def serve_the_rest(self) -> None:
        """Serve the processes that outlived the program's first one, until none is left.

        It returns at once in the calling process, and a copy of it does the work: whoever waits for the program
        gets its status now, as if nobody stood in between.
        """
        if self.has_processes() and os.fork() == 0:
            with contextlib.suppress(PtServerError):
                while self.has_processes():
                    self._round()
            os._exit(0)

    def _serve(self, call: PendingCall) -> None:
        row = call.row
        assert row is not None
        method = self._methods.get(row.name)
        if method is None:  # taken for the host's own sake
            self._proceed(call)
            return
        args, ins, outs, *_ = call.gathered
        seen = Call(self._session, call.id, call.tid, call.process.pid, row, args, ins, outs, call.goid)
        outcome: Outcome | None
        try:
            outcome = method(seen)
        except OSError as error:
            outcome = Fail(error.errno or errno.EIO)
        except Exception as error:
            raise ServerMistakeError.of(type(self._server), row.name, error) from error
        if row.name in self._observed:
            self._proceed(call)
        else:
            self._apply(call, seen, outcome)

    @contextlib.contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        """Turn what a hook of the server raises into one error that says so."""
        try:
            yield
        except Exception as error:
            raise ServerMistakeError.of(type(self._server), name, error) from error

    def _apply(self, call: PendingCall, seen: Call, outcome: Outcome | None) -> None:
        """Answer *call* as *outcome* says.

        Raises:
            ServerMistakeError: it speaks of arguments that the call does not have.
        """
        try:
            if type(outcome) is Return and not self._sees_results:  # the usual answer, the short way
                self._answer(call, outcome.value, 0, seen.outs_by_index(outcome.outs) if outcome.outs else {})
            else:
                self._carry_out(call, seen, Proceed() if outcome is None else outcome)
        except TypeError as error:
            raise ServerMistakeError.of(type(self._server), seen.name, error) from error

    def _carry_out(self, call: PendingCall, seen: Call, outcome: Outcome) -> None:
        match outcome:
            case Return():
                self._done(call, seen, Done(outcome.value, 0, outcome.outs))
            case Fail():
                self._done(call, seen, Done(0, outcome.errno))
            case Proceed():
                self._let_proceed(call, seen, outcome)
            case Delay():
                self._loop.later(outcome.seconds, lambda: self._apply_delayed(call, seen, outcome.outcome))
            case OpenBytes():
                fd = os.memfd_create("ptserver", os.MFD_CLOEXEC)
                with os.fdopen(fd, "wb", closefd=False) as file:
                    file.write(outcome.data)
                read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
                os.close(fd)
                self._give_fd(call, seen, read_only, bool(outcome.flags & os.O_CLOEXEC), {})
            case _:
                raise ServerMistakeError(f"{seen.name} returned {outcome!r}, which is no outcome")

    def _apply_delayed(self, call: PendingCall, seen: Call, outcome: Outcome | None) -> None:
        if self._pending.get(call.tid) is call:
            self._apply(call, seen, outcome)

    def _let_proceed(self, call: PendingCall, seen: Call, outcome: Proceed) -> None:
        """Let the thread make its call; or make it here, if the arguments are others or the result matters."""
        must_be_here = bool(outcome.changes or outcome.then) or call.touches_remote
        if not must_be_here and not (self._sees_results and can_make(seen.syscall)):
            self._proceed(call)
            return
        if not can_make(seen.syscall):
            raise ServerMistakeError(
                f"{seen.name} acts on what belongs to the calling process alone: it can be answered, or proceed "
                "as it is, but not be changed or looked at afterwards"
            )
        args, ins = seen.changed(outcome.changes)
        process = call.process
        executed = self._proxy.make(
            call.id, call.tid, process.pid, process.pidfd, seen.syscall, args, ins, seen.outs
        )
        if executed is None:
            self._making[call.id] = (call, seen, outcome)
        else:
            self._made(call, seen, outcome, executed)

    def _on_made(self) -> None:
        for call_id, executed in self._proxy.take_finished():
            call, seen, outcome = self._making.pop(call_id)
            if self._pending.get(call.tid) is call:
                self._made(call, seen, outcome, executed)
            else:
                _close_results(seen.syscall, executed)  # abandoned meanwhile

    def _made(self, call: PendingCall, seen: Call, outcome: Proceed, executed: Executed) -> None:
        """Answer a call that was made here, or do what the server wants instead."""
        value, error, outs = executed
        done = Done(value, error, seen.outs_by_name(outs))
        replaced = outcome.then(done) if outcome.then else None
        if replaced is not None:
            _close_results(seen.syscall, executed)
            self._apply(call, seen, replaced)
        elif _returns_fd(seen.syscall) and not error:
            self._give_fd(call, seen, value, closes_on_exec(value), outs)
        elif (index := _fd_pair(seen.syscall)) is not None and not error:
            self._give_pair(call, seen, index, _PAIR.unpack(outs[index]))
        else:
            self._done(call, seen, done)

    def _give_fd(
        self, call: PendingCall, seen: Call, fd: int, close_on_exec: bool, outs: dict[int, bytes]
    ) -> None:
        """Let *call* return a new descriptor of the program for what *fd* is open on; close *fd*."""
        try:
            scatter(call.gathered, outs, call.process.view)
            number = self._listener.answer_with_fd(call.notification_id, fd, close_on_exec=close_on_exec)
        except NotificationGoneError:  # the repeated call gets it
            call.fd = fd
            call.answer = lambda: self._give_fd(call, seen, fd, close_on_exec, outs)
            return
        except (OSError, BadArgumentError) as error:
            os.close(fd)
            self._done(call, seen, Done(0, error.errno or errno.EMFILE))
            return
        os.close(fd)
        self._forget(call)
        if self._sees_results:
            self._server.finished(seen, Done(number, 0, seen.outs_by_name(outs)))

    def _give_pair(
        self, call: PendingCall, seen: Call, index: int, pair: Sequence[int], given: Sequence[int] = ()
    ) -> None:
        """Put the descriptors *pair*, open here, into the program, and their numbers after those *given*."""
        rest = list(pair)
        numbers = list(given)
        try:
            while rest:
                close_on_exec = closes_on_exec(rest[0])
                number = self._listener.add_fd(call.notification_id, rest[0], close_on_exec=close_on_exec)
                numbers.append(number)
                os.close(rest.pop(0))
        except NotificationGoneError:  # the repeated call gets what is left
            call.answer = lambda: self._give_pair(call, seen, index, rest, numbers)
            return
        except OSError as error:
            for fd in rest:
                os.close(fd)
            self._done(call, seen, Done(0, error.errno or errno.EMFILE))
            return
        self._done(call, seen, Done(0, 0, {seen.syscall.args[index].name: _PAIR.pack(*numbers)}))

    def _abandon(self, call: PendingCall) -> None:
        if call.id in self._making:
            self._proxy.interrupt(call.id)
            self._loop.later(RETRY_SECONDS, self._interrupt_again)
        elif call.fd >= 0:
            os.close(call.fd)

    def _interrupt_again(self) -> None:
        if self._proxy.interrupt_again():
            self._loop.later(RETRY_SECONDS, self._interrupt_again)

    def _done(self, call: PendingCall, seen: Call, done: Done) -> None:
        self._answer(call, done.value, done.errno, seen.outs_by_index(done.outs))
        if self._sees_results:
            self._server.finished(seen, done)


def _returns_fd(row: Syscall) -> bool:
    return row.result is ResultKind.FD


def _fd_pair(row: Syscall) -> int | None:
    """Return which argument a call fills with two new descriptors, if it does."""
    return next((index for index, arg in enumerate(row.args) if arg.decoder == "fd_pair"), None)


def _close_results(row: Syscall, executed: Executed) -> None:
    """Close the descriptors that a call opened in this process, because the program will not get them."""
    value, error, outs = executed
    if error:
        return
    if _returns_fd(row):
        os.close(value)
    index = _fd_pair(row)
    if index is not None:
        for fd in _PAIR.unpack(outs[index]):
            os.close(fd)
