"""What an emulator asks of its stub host for itself: the program on it has no way to these hypercalls.

Thread rules: those of the host.
"""

import errno
from collections.abc import Callable, Mapping

from ptserver.hosts.alone import serve_last_words
from ptserver.hosts.known_files import KnownFiles
from ptserver.hosts.pending_call import PendingCall
from ptserver.hosts.stub_calls import answer_memory
from ptserver.messages import Cancel, MemoryResult, Message
from ptserver.stub.hypercalls import SERVER_LOST, Hypercall

_Answer = Callable[[PendingCall, int, int, dict[int, bytes]], None]


class EmulatorCalls:
    """Answers an emulator.

    pending: the calls that wait for their answers, by thread; in_flight: those that the server is making, by number;
    known: who answers some of them here, if anybody does; all_taken: whether all calls that may wait come to the
    host; tell, ask: reach the server; answer: of the host.
    """

    def __init__(
        self,
        pending: Mapping[int, PendingCall],
        in_flight: Mapping[int, PendingCall | None],
        known: KnownFiles | None,
        answer: _Answer,
        tell: Callable[[Message], None],
        ask: Callable[[Message], MemoryResult],
        *,
        all_taken: bool,
    ) -> None:
        self._pending = pending
        self._in_flight = in_flight
        self._known = known
        self._answer = answer
        self._tell = tell
        self._ask = ask
        self._all_taken = all_taken

    def serve(self, call: PendingCall) -> bool:
        """Answer *call* if it is an emulator's hypercall; else return False."""
        if call.nr == Hypercall.MEMORY:
            value, error = answer_memory(call, self._ask)
            self._answer(call, value, error, {})
        elif call.nr == Hypercall.INTERRUPT:
            self._answer(call, int(self._interrupt(call.args[0])), 0, {})
        else:
            return False
        return True

    def lose(self) -> None:
        """Let emulators go on with what does not want the server, which is lost."""
        for tid, call in list(self._pending.items()):
            if tid == call.process.pid and call.nr != Hypercall.WATCH:
                self._answer(call, 0, SERVER_LOST, {})

    def serve_last_words(self, call: PendingCall) -> None:
        """As `alone.serve_last_words`, but an emulator goes on while the thread of its program waits."""
        if serve_last_words(call, self._answer) or call.tid != call.process.pid:
            return
        self._answer(call, 0, SERVER_LOST, {})

    def _interrupt(self, tid: int) -> bool:
        """Let the call of thread *tid* return soon, if it waits for the server; return whether no signal is needed.

        A signal would void the call's notification, and with it what the server has done already.
        """
        call = self._pending.get(tid)
        if call is None:
            return self._all_taken  # it is not there yet, or not any more
        if self._in_flight.get(call.id) is call:
            self._tell(Cancel(call.id))
        elif self._known is not None and self._known.abandon(call):
            self._answer(call, 0, errno.EINTR, {})
        else:
            return call.result is not None
        return True
