"""The stub host whose server runs in this process and whose resources are this machine's own.

Only the calls that the server names arrive. One that it lets proceed unchanged is made by the thread itself; with
changed arguments, or if the server wants to see the result, it is made here on the program's descriptors
(`ptserver.proxy`).

Not trusted: the program. A server that decides by what a pointer leads to (a path, a buffer) and then lets the call
proceed unchanged decides by a copy: the program may change the original before its kernel reads it. Registers
cannot change.
"""

import contextlib
import errno
import os
import traceback
from collections.abc import Callable

from ptserver.call import Call
from ptserver.errors import PtServerError
from ptserver.host import Host, PendingCall, ThreadChange, exit_of
from ptserver.host_signals import HostSignals
from ptserver.outcomes import Delay, Done, Fail, OpenBytes, Outcome, Proceed, Return
from ptserver.proxy import Executed, closes_on_exec, execute_for
from ptserver.server import RuntimeServer
from ptserver.session import Session
from stepping.errors import NotificationGoneError
from stepping.launch import Launched
from stepping.syscalls import Arch, Syscall


class ServerMistakeError(PtServerError):
    """A method of the server raised an exception, or returned what is no outcome; its traceback was logged."""


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
        self._sees_results = type(server).finished is not RuntimeServer.finished

    def run(self) -> int:
        """Serve the program until it is gone; return its wait status, as waitpid(2) gives it.

        Raises:
            ServerMistakeError: the server failed; the program still runs.
        """
        self._server.session_started(self._session)
        try:
            status = super().run()
            self._server.exited(self._session, *exit_of(status))
        finally:
            self._server.session_ended(self._session)
        return status

    def _on_thread(self, tid: int, event: ThreadChange) -> None:
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
        assert call.row is not None
        seen = self._call_for_server(call, call.row)
        method = self._methods.get(call.row.name)
        if method is None:  # taken for the host's own sake
            self._proceed(call)
        elif call.row.name in self._observed:
            self._ask(method, seen)
            self._proceed(call)
        else:
            self._apply(call, seen, self._ask(method, seen))

    def _call_for_server(self, call: PendingCall, row: Syscall) -> Call:
        gathered = call.gathered
        return Call(
            self._session,
            call.id,
            call.tid,
            call.process.pid,
            row,
            gathered.args,
            gathered.ins,
            gathered.outs,
        )

    def _ask(self, method: Callable[[Call], Outcome | None], call: Call) -> Outcome | None:
        try:
            return method(call)
        except OSError as error:
            return Fail(error.errno or errno.EIO)
        except Exception as error:  # whatever a user's method raises ends the session in one place
            self._session.log(traceback.format_exc())
            name = f"{type(self._server).__name__}.{call.name}"
            raise ServerMistakeError(f"{name} raised {type(error).__name__}: {error}") from error

    def _apply(self, call: PendingCall, seen: Call, outcome: Outcome | None) -> None:
        """Answer *call* as *outcome* says."""
        if outcome is None:
            outcome = Proceed()
        match outcome:
            case Return():
                self._done(call, seen, Done(outcome.value, 0, outcome.outs))
            case Fail():
                self._done(call, seen, Done(0, outcome.errno))
            case Proceed():
                if outcome.changes or outcome.then or self._sees_results:
                    self._execute_here(call, seen, outcome)
                else:
                    self._proceed(call)
            case Delay():
                self._loop.later(outcome.seconds, lambda: self._apply_delayed(call, seen, outcome.outcome))
            case OpenBytes():
                fd = os.memfd_create("ptserver", os.MFD_CLOEXEC)
                with os.fdopen(fd, "wb", closefd=False) as file:
                    file.write(outcome.data)
                read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
                os.close(fd)
                self._give_fd(call, seen, read_only, bool(outcome.flags & os.O_CLOEXEC))
            case _:
                raise ServerMistakeError(f"{seen.name} returned {outcome!r}, which is no outcome")

    def _apply_delayed(self, call: PendingCall, seen: Call, outcome: Outcome | None) -> None:
        if self._pending.get(call.tid) is call:
            self._apply(call, seen, outcome)

    def _execute_here(self, call: PendingCall, seen: Call, outcome: Proceed) -> None:
        args, ins = seen.changed(outcome.changes)
        executed = execute_for(call.tid, call.process.pid, seen.syscall, args, ins, seen.outs)
        self._executed(call, seen, outcome, executed)

    def _executed(self, call: PendingCall, seen: Call, outcome: Proceed, executed: Executed) -> None:
        done = Done(executed.value, executed.errno, seen.outs_by_name(executed.outs))
        replaced = outcome.then(done) if outcome.then else None
        if replaced is not None:
            if executed.fd >= 0:
                os.close(executed.fd)
            self._apply(call, seen, replaced)
        elif executed.fd >= 0:
            self._give_fd(call, seen, executed.fd, closes_on_exec(executed.fd))
        else:
            self._done(call, seen, done)

    def _give_fd(self, call: PendingCall, seen: Call, fd: int, close_on_exec: bool) -> None:
        """Let *call* return a new descriptor of the program for what *fd* is open on; close *fd*."""
        try:
            number = self._listener.answer_with_fd(call.notification_id, fd, close_on_exec=close_on_exec)
        except NotificationGoneError:
            return  # nothing happened that the program could see: the repeated call begins anew
        except OSError as error:
            self._done(call, seen, Done(0, error.errno or errno.EMFILE))
            return
        finally:
            os.close(fd)
        self._forget(call)
        if self._sees_results:
            self._server.finished(seen, Done(number))

    def _done(self, call: PendingCall, seen: Call, done: Done) -> None:
        self._answer(call, done.value, done.errno, seen.outs_by_index(done.outs))
        if self._sees_results:
            self._server.finished(seen, done)
