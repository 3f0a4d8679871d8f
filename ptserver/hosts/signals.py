"""The signals of a stub host: read from a descriptor, passed on to the program where they are meant for it.

Thread rules: made in the main thread before the program is launched; all threads inherit the mask.
"""

import contextlib
import os
import signal

from ptserver.signal_descriptor import SI_KERNEL, open_signals, read_numbers

_STOPPING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OWN = (signal.SIGCHLD, signal.SIGWINCH)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class HostSignals:
    """Blocks the signals that a host deals with and gives them back as they arrive.

    original_mask: what was blocked before, which the program must get.
    """

    def __init__(self) -> None:
        signals = (*_PASSED_ON, *_STOPPING, *_OWN)
        self.original_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        self._fd = open_signals(signals)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def receive(self) -> list[tuple[int, bool]]:
        """Return what arrived: (signal number, whether the kernel sent it, as a terminal's keys do)."""
        return [(signo, code == SI_KERNEL) for signo, code in read_numbers(self._fd)]

    def close(self) -> None:
        """Give the signals back their old mask."""
        os.close(self._fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.original_mask)


def is_passed_on(signo: int) -> bool:
    """Whether a signal that a user sends to the host is meant for the program."""
    return signo in _PASSED_ON


def is_ending(signo: int) -> bool:
    """Whether a signal says that what goes on by itself, such as the trace of a running process, is to end."""
    return signo in _ENDING


def is_from_foreign_group(signo: int) -> bool:
    """Whether the signal is one that stops background jobs at a terminal."""
    return signo in _STOPPING


def send_signal(pid: int, signo: int) -> None:
    """Send a signal to process *pid*, if there still is one."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signo)
