"""The calls of one session: the server's method first, then the shadow, now or when the call has waited.

Not trusted: the stub host; what its messages may hold is bounded by their types.
Thread rules: the session's main thread; workers run only `ptserver.shadow.execute.execute`.
"""

import errno
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from ptserver.call import Call
from ptserver.confinement.gate import GATED, Gate
from ptserver.errors import ProtocolError
from ptserver.hosts.policy import CLOCK_CALLS, EXECS, FORKS, SHADOW_CALLS, WRITES
from ptserver.messages import Cancel, Message, Observed, Result, Signal, Syscall, Taken
from ptserver.net.poll_loop import PollLoop
from ptserver.outcomes import Delay, Done, Fail, OpenBytes, Outcome, Proceed, Return
from ptserver.server import RuntimeServer
from ptserver.session import Session
from ptserver.sessions.behind import WriteBehind
from ptserver.sessions.descriptor_states import DescriptorStates
from ptserver.sessions.direct_sockets import DirectSockets
from ptserver.sessions.foresight import LOOKED_AT, POSTED, Foresight
from ptserver.sessions.lasting_files import LastingFiles
from ptserver.shadow.birth import Birth, birth_of
from ptserver.shadow.events import EventWaits
from ptserver.shadow.execute import Executed
from ptserver.shadow.state import Shadow
from ptserver.shadow.waiting import EPOLLS, Args
from ptserver.shadow.workers import RETRY_SECONDS, Workers
from stepping.syscalls import SYSCALLS
from stepping.syscalls import Syscall as Row
from stepping.syscalls.marshal import BadArgumentError

#: More calls in flight than any program has threads waiting.
_MAX_WAITING = 16384
_INT = 0xFFFFFFFF


#: Calls after which paths may lead elsewhere.
_LEADS_ELSEWHERE = frozenset("chdir fchdir chroot pivot_root setns unshare".split())
_SIGNALLING = frozenset({"kill", "pidfd_send_signal", "rt_sigqueueinfo"})


class OtherShadow(Protocol):
    """The shadow of another process than this one's."""

    def send(self, message: Syscall | Cancel) -> None:
        """Have it make a call, or cancel one; the results come to `Calls.settle`."""

    def has(self, call_id: int) -> bool:
        """Whether it was given that call and has not answered."""


#: The shadows of the other processes of a program, by the id of the process.
Elsewhere = Mapping[int, OtherShadow]


class _Entry(NamedTuple):
    """What to do with calls of one name.

    method: the server's, if it has one; errno: set if none is made; for_host: it concerns no resource.
    """

    row: Row
    method: Callable[[Call], Outcome | None] | None
    observes: bool
    errno: int
    for_host: bool


class _InFlight(NamedTuple):
    """A call that waits: for a worker, its time, or another shadow. call: if the server is to see its result."""

    call: Call | None
    then: Callable[[Done], Outcome | None] | None
    row: Row
    args: Args
    elsewhere: bool = False


class Calls:
    """Answers calls by *send*.

    loop: where calls wait for events; copy: makes a descriptor of our own; gate: judges calls on sockets. foresight:
    set if the host is to be told what it may ask next.
    """

    def __init__(
        self,
        session: Session,
        server: RuntimeServer,
        shadow: Shadow,
        workers: Workers[int],
        send: Callable[[Message], None],
        loop: PollLoop,
        copy: Callable[[int], int],
        gate: Gate | None = None,
        *,
        fork: Callable[[Birth, dict[int, int]], Executed],
        become: Callable[[int, str, Args, dict[int, bytes]], int | None],
        take_signals: Callable[[], None],
        elsewhere: "Elsewhere | None" = None,
        pid: int = 0,
        keeps_time: bool = False,
    ) -> None:
        """Fork: makes another shadow; become: executes another program in this process, returns None in a copy.

        take_signals: sends on the signals that have reached this process.
        pid: the process whose calls these are, 0 for the program's first; keeps_time: whether clocks are read here.
        """
        self._keeps_time = keeps_time
        self._pid = pid
        self._fork = fork
        self._become = become
        self._take_signals = take_signals
        self._elsewhere: Elsewhere = {} if elsewhere is None else elsewhere
        self._session = session
        self._server = server
        self._shadow = shadow
        self._workers = workers
        self._send = send
        self._loop = loop
        self._later = loop.later
        self._gate = gate
        self._copy = copy
        self._events = EventWaits(loop, copy, self.settle)
        shadow.forgets = self._forget_descriptors
        self._interest = type(server).declared_interest()
        self._watches_results = type(server).finished is not RuntimeServer.finished
        self._entries: dict[str, _Entry] = {}
        self._waiting: dict[int, _InFlight] = {}
        self.foresight: Foresight | None = None
        self._lasting: LastingFiles | None = None
        self._states: DescriptorStates | None = None
        self._behind: WriteBehind | None = None
        self.direct: DirectSockets | None = None

    def work_ahead(self, keep: Callable[[int], int], first_own: int, lasting: LastingFiles) -> None:
        """Tell the host what it may ask next, and take what it has answered itself.

        keep: makes a descriptor one of our own; first_own: the first that is not the program's; lasting: the files
        of which `send` sees that they are not used for longer than they may be.
        """
        self._lasting = lasting
        self.foresight = Foresight(self._send, keep, self._later, first_own, lasting)
        self._states = DescriptorStates(self._send, self.foresight.is_plain, first_own)
        self._behind = WriteBehind(self._states, self._workers, self._made, self.take_call, self._copy)
        self.direct = DirectSockets(self._loop, self._send, self._copy, self._states, self._behind)

    @property
    def writes_behind(self) -> bool:
        """Whether something is still to be written that the program has written."""
        if self._behind is None or self.direct is None:
            return False
        return self._behind.is_busy or self.direct.is_busy

    def _forget_descriptors(self, first: int, last: int) -> None:
        """Hear that the numbers from *first* to *last* no longer stand for what they did."""
        self._events.forget(first, last)
        if self._states is not None and self._behind is not None and self.direct is not None:
            self._states.forget(first, last)
            self._behind.forget(first, last)
            self.direct.forget(first, last)
        if self.foresight is not None:
            self.foresight.forget(first, last)

    def take_call(self, message: Syscall) -> None:
        """Answer a call, now or later.

        Raises:
            ProtocolError: one of the same id is in flight, or too many are.
        """
        if message.posted:
            self._make_posted(message)
            return
        call_id = message.id
        if self._behind is not None and not self._behind.is_quiet and message.pid not in self._elsewhere:
            if self._behind.holds(message):
                return
            failure = self._behind.failure_for(message)
            if failure:
                self._tell_failure(message, failure)
                return
        entry = self._entry(message.name)
        if entry is None:
            self._session.log(f"refused {message.name!r} with ENOSYS: there is no such syscall")
            self._send(Result(call_id, 0, errno.ENOSYS))
            return
        if call_id in self._waiting:
            raise ProtocolError(f"the host sent call {call_id} twice")
        if len(self._waiting) >= _MAX_WAITING:
            raise ProtocolError(
                f"the host has {_MAX_WAITING} calls in flight, more than a program has threads"
            )
        if entry.method is None and not self._watches_results:
            if self.foresight is None or not self._make_looking_ahead(message, entry.row):
                self._make(call_id, entry, None, None, message.args, message.ins, message.outs, message.pid)
            return
        call = Call(
            self._session,
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

    def take_observed(self, message: Observed) -> None:
        """Let the server hear of a call that the program makes itself."""
        entry = self._entry(message.name)
        if entry is not None:
            call = Call(
                self._session,
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

    def take_taken(self, message: Taken) -> None:
        """Hear what became of a folder that was told of. Raises: ProtocolError: none was."""
        if self.foresight is None:
            raise ProtocolError(f"the host took folder {message.id}, of which it was not told")
        self.foresight.taken(message)

    def take_cancel(self, message: Cancel) -> None:
        """Answer a call that waits, soon."""
        call_id = message.id
        if call_id in self._workers:
            if not self._workers.is_interrupting:
                self._later(RETRY_SECONDS, self._interrupt_again)
            self._workers.interrupt(call_id)
            # Its thread goes on: what is written next is not for a read that nobody waits for any more.
            self._workers.await_end(call_id)
        elif self._behind is not None and self._behind.cancel(call_id):
            self._send(Result(call_id, 0, errno.EINTR))
        elif call_id in self._waiting:
            for shadow in self._elsewhere.values():
                if shadow.has(call_id):
                    shadow.send(message)
                    return
            self._events.cancel(call_id)
            self.settle(call_id, (0, errno.EINTR, {}))

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
        is_made_here = name in SHADOW_CALLS or (self._keeps_time and name in CLOCK_CALLS)
        for_host = row.concerns_host and not is_made_here
        entry = self._entries[name] = _Entry(row, method, observes, failure, for_host)
        return entry

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
                waiting = self._waiting[call.id] = _InFlight(call, None, call.syscall, call.args)
                self._later(seconds, lambda: self._release(waiting, entry, later))
            case _:
                raise TypeError(f"{type(self._server).__name__}.{call.name} returned {outcome!r}, no outcome")

    def _make(
        self,
        call_id: int,
        entry: _Entry,
        call: Call | None,
        then: Callable[[Done], Outcome | None] | None,
        args: Args,
        ins: dict[int, bytes],
        outs: dict[int, int],
        pid: int,
    ) -> None:
        """Let the shadow make the call, and answer it then; one that concerns no resource is the host's to make."""
        row, shadow = entry.row, self._shadow
        if entry.for_host and then is None and (call is None or args is call.args):
            self._send(Result(call_id, proceed=True))
        elif pid in self._elsewhere:
            self._waiting[call_id] = _InFlight(call, then, row, args, elsewhere=True)
            self._elsewhere[pid].send(Syscall(call_id, 0, pid, row.name, args, ins, outs))
        elif entry.errno:
            shadow.refuses(row)
            self._answer(call_id, call, (0, entry.errno, {}))
        elif self._gate and row.name in GATED and (failure := self._gate.judge(row.name, args, ins)):
            self._complete(call_id, call, then, (0, failure, {}))
        elif row.name in FORKS:
            try:
                forked = self._fork(birth_of(row.name, args, ins), outs)
            except BadArgumentError as error:
                forked = 0, error.errno, {}
            self._complete(call_id, call, then, forked)
        elif row.name in EXECS:
            refusal = self._become(call_id, row.name, args, ins)
            if refusal is not None:
                if self._gate:
                    self._gate.heard(row, ins, refusal)
                self._complete(call_id, call, then, (0, refusal, {}))
        elif row.may_wait and shadow.may_wait(row, args, ins):
            ask = shadow.asking(row, args, ins, outs)
            ready = ask() if ask is not None else None
            if ready is not None:
                self._made(row, args, ready)
                self._complete(call_id, call, then, ready)
                return
            self._waiting[call_id] = _InFlight(call, then, row, args)
            if ask is not None and row.name in EPOLLS:
                timeout = shadow.timeout_of(row, args, ins)
                self._events.start(call_id, args[0] & 0xFFFFFFFF, timeout, ask)
            else:
                self._workers.start(call_id, shadow.work(row, args, ins, outs))
        else:
            executed = shadow.execute(row, args, ins, outs, pid)
            if self._gate and executed[1]:
                self._gate.heard(row, ins, executed[1])
            self._made(row, args, executed)
            if row.name == "epoll_ctl" and self._states is not None and not executed[1]:
                self._states.watches(args[0] & _INT, args[1] & _INT, args[2] & _INT, ins.get(3, b""))
            self._complete(call_id, call, then, executed)

    def _made(self, row: Row, args: Args, executed: Executed) -> None:
        """Do what else a call does that was made here."""
        if self._states is not None and not executed[1]:
            self._tell_states(self._states, row.name, args, executed)
        if row.name in _LEADS_ELSEWHERE and self._lasting is not None:
            self._lasting.forget()
        if row.name in _SIGNALLING:
            self._take_signals()  # it may have meant its own process, too, which must hear of that first
        if executed[1] == errno.EPIPE and row.may_wait and self._shadow.raises_sigpipe(row, args):
            self._send(Signal(signal.SIGPIPE, self._pid))  # this process ignores its own

    def _tell_states(self, states: DescriptorStates, name: str, args: Args, executed: Executed) -> None:
        """Tell what a call that has succeeded lets expect of descriptors."""
        if name in EPOLLS:
            if executed[0]:
                states.happened(args[0] & _INT, executed[2].get(1, b""))
        elif name == "read":
            if 0 < executed[0] < args[2]:
                states.read(args[0] & _INT)
        elif name in WRITES:
            states.wrote(args[0] & _INT)
        elif name == "setsockopt":
            states.option_set(args[0] & _INT, args[1] & _INT, args[2] & _INT)
        elif name == "shutdown":
            states.shut_down(args[0] & _INT, args[1] & _INT)

    def _tell_failure(self, message: Syscall, failure: int) -> None:
        """Answer a call on a descriptor with the error of an earlier write; of closing nothing else can be told."""
        if message.name == "close":
            self._shadow.execute(SYSCALLS["close"], message.args, {}, {}, message.pid)
        self._send(Result(message.id, 0, failure))

    def _make_looking_ahead(self, message: Syscall, row: Row) -> bool:
        """Make a call whose result is to come with answers to others; return whether it is one that does not wait."""
        args, ins, shadow = message.args, message.ins, self._shadow
        if row.name not in LOOKED_AT or message.pid in self._elsewhere:
            return False
        if row.may_wait and shadow.may_wait(row, args, ins):
            return False
        executed = shadow.execute(row, args, ins, message.outs, message.pid)
        assert self.foresight is not None
        self.foresight.look(message, executed)
        self._complete(message.id, None, None, executed)
        return True

    def _make_posted(self, message: Syscall) -> None:
        """Make a call that the host has answered itself.

        Raises:
            ProtocolError: it may not.
        """
        if self.foresight is None or message.name not in POSTED or message.pid in self._elsewhere:
            raise ProtocolError(f"the host answered {message.name!r} itself")
        if message.name in WRITES:
            assert self._behind is not None
            self._behind.write(message)
            return
        if message.name == "recvfrom":
            assert self._states is not None
            self._states.take(message.args[0] & _INT, message.args[2])
            return
        if message.name == "close" and self.direct is not None:
            self.direct.closing(message.args[0] & _INT)
        self._shadow.execute(SYSCALLS[message.name], message.args, message.ins, message.outs, message.pid)

    def _complete(
        self,
        call_id: int,
        call: Call | None,
        then: Callable[[Done], Outcome | None] | None,
        executed: Executed,
    ) -> None:
        """Answer a call that was made, or do what *then* wants instead."""
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
        if self.direct is not None:
            self.direct.look()
        self._send(Result(call_id, value, failure, outs))
        if self._watches_results and call is not None:
            self._server.finished(call, Done(value, failure, call.outs_by_name(outs)))

    def settle(self, call_id: int, executed: Executed) -> None:
        """Answer a call that waited, if it still does."""
        waiting = self._waiting.pop(call_id, None)
        if waiting is not None:
            if not waiting.elsewhere:
                self._made(waiting.row, waiting.args, executed)
            self._complete(call_id, waiting.call, waiting.then, executed)

    def take_finished(self) -> None:
        """Answer the calls that workers have made."""
        for call_id, executed in self._workers.take_finished():
            if self._behind is None or not self._behind.finished(call_id, executed):
                self.settle(call_id, executed)

    def _release(self, delayed: _InFlight, entry: _Entry, outcome: Outcome | None) -> None:
        """Go on with a call whose time has come, unless it was cancelled meanwhile."""
        call = delayed.call
        if call is not None and self._waiting.get(call.id) is delayed:
            del self._waiting[call.id]
            self._resolve(call, entry, outcome)

    def forget(self, call_ids: Iterable[int]) -> None:
        """Answer these no more: the process that made them is gone."""
        for call_id in call_ids:
            self._waiting.pop(call_id, None)

    def start_anew(self) -> None:
        """Go on in a process that was forked: what the other was doing is not done here."""
        for call_id in self._waiting:
            self._events.cancel(call_id)
        self._waiting.clear()
        self._forget_descriptors(0, _INT)

    def end(self) -> None:
        """Answer nothing any more, and let the workers return."""
        self._waiting.clear()
        self._workers.interrupt_all()
        self._interrupt_again()

    def _interrupt_again(self) -> None:
        if self._workers.is_interrupting:
            self._workers.interrupt_again()
            self._later(RETRY_SECONDS, self._interrupt_again)
