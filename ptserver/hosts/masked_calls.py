"""The calls of a program's threads that wait with a signal mask of their own, see `stepping.masked_wait`.

Only one whose mask differs from its thread's is dealt with: programs that use none pay nothing.

Thread rules: the host's thread.
"""

import contextlib
from collections.abc import Callable

from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.hosts.process_signals import MASK_ARGUMENTS
from stepping.errors import SteppingError, TraceeGoneError
from stepping.masked_wait import MaskedWait, differs, wait_as


class MaskedCalls:
    """The calls of that kind that are under way, by thread.

    settle: ends a call, see `MaskedWait`; forget: hears of one that has returned its result.
    """

    def __init__(
        self,
        settle: Callable[[PendingCall], tuple[int, int] | bool],
        forget: Callable[[PendingCall], None],
    ) -> None:
        self._settle = settle
        self._forget = forget
        self._waits: dict[int, tuple[MaskedWait, PendingCall]] = {}

    def __contains__(self, tid: object) -> bool:
        """Whether thread *tid* is seized for it."""
        return tid in self._waits

    def begin(self, call: PendingCall, mask: int) -> None:
        """Have the thread of *call*, which is not answered yet, wait with the call's *mask*, if it has another."""
        assert call.row is not None
        name, pid, tid = call.row.name, call.process.pid, call.tid
        wait = wait_as(name, call.args, MASK_ARGUMENTS[name])
        with contextlib.suppress(SteppingError):  # it is gone, or seized already
            if differs(mask, pid, tid):
                settle = self._settle
                masked = MaskedWait(pid, tid, call.nr, call.ip, call.args, wait, lambda: settle(call))
                self._waits[tid] = masked, call

    def send_as(self, tid: int, signo: int, sender: int) -> None:
        """Have the signal that is now sent to a seized thread be from *sender*."""
        self._waits[tid][0].send_as(signo, sender)

    def advance(self) -> None:
        """Go on with all of them."""
        for tid, (wait, call) in list(self._waits.items()):
            try:
                if call.result is not None:
                    wait.finish(call.result)
                wait.advance()
            except TraceeGoneError:
                del self._waits[tid]
                continue
            if wait.is_over:
                del self._waits[tid]
                if wait.has_returned and call.result is not None:
                    self._forget(call)

    def ended(self, process: Process) -> None:
        """Forget the threads of a process that is gone."""
        for tid, (_, call) in list(self._waits.items()):
            if call.process is process:
                del self._waits[tid]
