"""The signals of a shadow: they are the program's, so none acts here; each is sent on to its process.

What stays with the shadow: SIGPIPE and SIGXFSZ, whose calls fail with an error instead; what an instruction of its
own would raise; the signal that interrupts its workers; and what the program wants to read itself (`signalfd`).

An exec hands on what the program ignores and blocks, which its host tells (`SignalState`).

Thread rules: one thread, the shadow's first; made before there are others, which inherit the mask.
Source: signal(7), signalfd(2).
"""

import os
import signal
from collections.abc import Callable, Set

from ptserver.messages import Message, Signal, SignalState
from ptserver.shadow.workers import WORKER_SIGNAL
from ptserver.signal_descriptor import ALL_SIGNALS, Received, open_signals, read_signals

_OF_INSTRUCTIONS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGSYS,
}
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
_C_LIBRARY = {32, 33}
_FORWARDED: frozenset[int] = ALL_SIGNALS - _OF_INSTRUCTIONS - set(_IGNORED) - _C_LIBRARY - {WORKER_SIGNAL}
_SIGCHLD_BIT = 1 << (signal.SIGCHLD - 1)


class ShadowSignals:
    """See the module's text. ignored, blocked: the program's sets, bit *n* for signal *n* + 1."""

    def __init__(self, keep: Callable[[int], int]) -> None:
        """Keep: moves a descriptor out of the program's way, as `Descriptors.keep` does."""
        self.ignored = 0
        self.blocked = 0
        # What is ignored here, as after nohup, is ignored for the program, too.
        self._mask: frozenset[int] = frozenset(
            signo for signo in _FORWARDED if signal.getsignal(signo) != signal.SIG_IGN
        )
        self._taken = self._mask
        for signo in _IGNORED:
            signal.signal(signo, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._fd = keep(open_signals(self._mask))

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def receive(self) -> list[Received]:
        """Return the signals that have reached this process."""
        return read_signals(self._fd)

    def leave_to_program(self, mask: int) -> None:
        """Forward the signals of *mask* no more: the program has a descriptor that gives them."""
        self._taken = frozenset(signo for signo in self._taken if not mask >> (signo - 1) & 1)
        open_signals(self._taken, self._fd)

    def set_state(self, state: SignalState) -> None:
        """Take over what the program ignores and blocks."""
        self.ignored, self.blocked = state.ignored, state.blocked
        ignores_children = bool(state.ignored & _SIGCHLD_BIT)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN if ignores_children else signal.SIG_DFL)

    def apply(self) -> None:
        """Treat signals as the program does, for an exec, which gives handled ones their default action."""
        self._dispose({signo for signo in ALL_SIGNALS if self.ignored >> (signo - 1) & 1})
        blocked = {signo for signo in ALL_SIGNALS if self.blocked >> (signo - 1) & 1}
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def withdraw(self) -> None:
        """Undo `apply`, after an exec that failed."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._dispose({*_IGNORED, *({signal.SIGCHLD} if self.ignored & _SIGCHLD_BIT else ())})

    def _dispose(self, ignored: Set[int]) -> None:
        """Ignore these, of all signals that somebody may ignore, and no others."""
        for signo in _FORWARDED.union(_IGNORED):
            signal.signal(signo, signal.SIG_IGN if signo in ignored else signal.SIG_DFL)

    def stop(self, signo: int) -> None:
        """Let stopping signal *signo* act on this process; return when it goes on."""
        signal.signal(signo, signal.SIG_DFL) if signo != signal.SIGSTOP else None
        os.kill(os.getpid(), signo)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signo})
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def signal_message(pid: int, received: Received) -> Message:
    """Return what a host is told of a signal that reached the shadow of process *pid*."""
    value = received.status if received.signo == signal.SIGCHLD else received.value & 0xFFFFFFFF
    return Signal(received.signo, pid, received.code, received.pid, received.uid, value)
