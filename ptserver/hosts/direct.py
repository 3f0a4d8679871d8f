"""Direct sockets as a stub host sees them: `DirectSockets` moves bytes, `DirectEvents` tells when there are any.

Thread rules: the host's thread.
"""

import errno
from collections.abc import Callable, Iterator, Mapping

from ptserver.hosts.direct_calls import names
from ptserver.hosts.direct_events import WAITS, DirectEvents
from ptserver.hosts.direct_sending import DirectSending
from ptserver.hosts.direct_sockets import DirectSockets
from ptserver.hosts.known_files import KnownFiles
from ptserver.hosts.local_files import LocalFiles
from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.messages import Cancel, Direct, DirectEnd, Message, Result, Syscall
from ptserver.net.poll_loop import PollLoop
from stepping.direct_calls import DirectTable
from stepping.direct_opens import DirectOpens
from stepping.listener import Listener, Notification
from stepping.syscalls import SYSCALLS, Arch
from stepping.syscalls.marshal import Args
from stepping.tracee_memory import TraceeMemory

_SOME_ADDRESS = 1 << 12
_U64, _INT = (1 << 64) - 1, 0xFFFFFFFF
_EVENT_BYTES = 16
#: What depends on an offset, or changes it.
_MOVES = frozenset({"read", "readv", "lseek", "pread64"})
_EPOLL_CTL_MOD = 3


class DirectCalls:
    """Of the process *main*, whose table of descriptors is at *address* there.

    known: what the host knows otherwise. send: queues a message; answer: lets a call return; make: has the session
    make one. in_flight: the calls that the session makes; asked: who hears of results of the host's own calls.
    is_alone: whether there is no other process of the program, which might have its memory.
    """

    def __init__(
        self,
        main: Process,
        address: int,
        loop: PollLoop,
        listener: Listener,
        known: KnownFiles,
        send: Callable[[Message], None],
        answer: Callable[[PendingCall, int, int, dict[int, bytes]], None],
        make: Callable[[PendingCall], None],
        ids: Iterator[int],
        in_flight: Mapping[int, PendingCall | None],
        asked: dict[int, Callable[[Result], None]],
        arch: Arch,
        is_alone: Callable[[], bool],
    ) -> None:
        self._main = main
        self._known = known
        self._send = send
        self._make = make
        self._ids = ids
        self._in_flight = in_flight
        self._asked = asked
        self._coming_back: set[int] = set()
        self._plain = frozenset({SYSCALLS["read"].numbers[arch], SYSCALLS["write"].numbers[arch]})
        self._sendfile_number = SYSCALLS["sendfile"].numbers[arch]
        self._events = DirectEvents(loop, self, answer, known.forget_contents, arch)
        table = DirectTable(main.memory, address)
        self._local = LocalFiles(table, listener, loop.later, is_alone)
        opens = DirectOpens(main.memory, address, table)
        known.lasting_calls.let_program(main.pid, self._local, opens, loop.later)
        self._sockets = DirectSockets(
            table,
            loop,
            listener,
            send,
            lambda: next(ids),
            answer,
            self._events,
            known,
        )
        self._sending = DirectSending(self._sockets, known.lasting_calls)

    def close(self) -> None:
        """Give up every descriptor."""
        self._sockets.close()
        self._local.close()
        self._events.close()

    def pause(self, *, paused: bool) -> None:
        """Take nothing from the program's sockets for now, or again."""
        self._sockets.pause(paused=paused)

    def stop(self) -> None:
        """Let the program make no calls itself any more, for now; what it has written is sent."""
        self._known.lasting.catch_up()
        self._local.end_all()
        self._sockets.end_all()

    def quick(self, notification: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        """Answer a call of the first process by its arguments alone, if that can be done; see `Host`."""
        if notification.nr in self._plain and self._sockets.has(notification.a0):
            return None  # it was made before the socket was direct; what is known may be older
        if notification.nr == self._sendfile_number:
            return self._sending.quick(notification)
        answer = self._events.quick(notification, memory)
        if answer is None:
            answer = self._known.quick(notification, memory)
            if answer is not None and answer[0] > 0 and notification.nr in self._plain:
                self._sockets.consider(notification.id, notification.a0)
        return answer

    def serve(self, call: PendingCall) -> bool:
        """Answer *call*, now or later, and return True; or prepare for its being sent, and return False."""
        if call.process is not self._main:
            if call.row is not None and call.row.name in WAITS:
                self._share(call.args[0] & _INT)  # it has the instance, too
            return False
        assert call.row is not None
        self._known.lasting.catch_up_for(call)
        if call.row.name in _MOVES:
            self._local.end(call.args[0] & _INT)
        if self._sockets.serve(call) or self._events.serve(call):
            return True
        if call.row.name == "close":
            self._events.closed(call.args[0] & _INT)
        elif call.row.name not in WAITS:
            self._look_for_instances(call)
        return False

    def _look_for_instances(self, call: PendingCall) -> None:
        """Give up instances that a call shares, or watches. To watch something by one is nothing of that."""
        is_control = call.row is not None and call.row.name == "epoll_ctl"
        for fd in [call.args[2] & _INT] if is_control else list(names(call)):
            if self._events.has(fd):
                self._share(fd)

    def _share(self, epfd: int) -> None:
        self._sockets.end_watched(epfd)
        self._events.share(epfd)

    def unmapped(self) -> None:
        """Hear that the program may give memory up."""
        if self._known.lasting.own is not None:
            self._known.lasting.own.unmapped()

    def before(self, message: Syscall) -> None:
        """Send what must come before a call."""
        self._sockets.collect()
        self._events.made(message.name)

    def heard(self, call: PendingCall, result: Result, *, may_begin: bool) -> bool:
        """Hear of the result of a call before the program does; return whether it is not to hear of it.

        may_begin: whether sockets may become direct.
        """
        if call.id in self._coming_back:
            self._coming_back.discard(call.id)
            if result.errno == errno.EINTR:
                self._events.come_back(call)
                return True
        if call.process is self._main:
            self._sockets.heard(call, -1 if result.errno else result.value, may_begin=may_begin)
            if call.row is not None and call.row.name == "epoll_ctl" and not result.errno:
                self._events.controlled(call.args, call.gathered.ins.get(3, b""))
        return False

    def take(self, message: Direct | DirectEnd) -> None:
        """Take what the session tells of sockets."""
        if type(message) is DirectEnd:
            self._sockets.take_end(message)
        elif type(message) is Direct:
            self._known.lasting.heard()
            if self._sockets.take(message):
                self._known.forget_contents()

    def abandon(self, call: PendingCall) -> bool:
        """Forget a call that does not wait any more; return whether it did here."""
        return self._events.abandon(call)

    # What events want of the session.

    def ask(self, epfd: int, room: int, milliseconds: int, take: Callable[[Result], None]) -> int:
        """See `direct_events.Session`."""
        args = (epfd, _SOME_ADDRESS, room, milliseconds & _U64, 0, 0)
        return self._ask("epoll_pwait", args, {}, {1: room * _EVENT_BYTES}, take)

    def cancel(self, call_id: int) -> None:
        """See `direct_events.Session`."""
        if call_id:
            self._send(Cancel(call_id))

    def wake(self, epfd: int, fd: int, event: bytes) -> None:
        """See `direct_events.Session`."""
        args = (epfd, _EPOLL_CTL_MOD, fd, _SOME_ADDRESS, 0, 0)
        self._ask("epoll_ctl", args, {3: event}, {}, lambda result: None)

    def bring_back(self, epfd: int) -> None:
        """See `direct_events.Session`."""
        for call in self._in_flight.values():
            if (
                call is not None
                and call.row is not None
                and call.row.name in WAITS
                and call.args[0] == epfd
                and call.process is self._main
            ):
                self._coming_back.add(call.id)
                self._send(Cancel(call.id))

    def make(self, call: PendingCall) -> None:
        """See `direct_events.Session`."""
        self._make(call)

    def _ask(
        self,
        name: str,
        args: Args,
        ins: dict[int, bytes],
        outs: dict[int, int],
        take: Callable[[Result], None],
    ) -> int:
        call_id = next(self._ids)
        self._asked[call_id] = take
        self._send(Syscall(call_id, self._main.pid, self._main.id, name, args, ins, outs))
        return call_id
