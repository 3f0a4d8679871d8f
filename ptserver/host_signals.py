"""The signals of a stub host: read from a descriptor, passed on to the program where they are meant for it.

Thread rules: made in the main thread before the program is launched; all threads inherit the mask.
Source: signalfd(2).
"""

import ctypes
import os
import signal
import struct

_SI_KERNEL = 0x80
_RECORD_BYTES = 128
_RECORD = struct.Struct("=Iii")  # ssi_signo, ssi_errno, ssi_code
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC

_STOPPING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OWN = (signal.SIGCHLD, signal.SIGWINCH)


class HostSignals:
    """Blocks the signals that a host deals with and gives them back as they arrive.

    original_mask: what was blocked before, which the program must get.
    """

    def __init__(self) -> None:
        signals = (*_PASSED_ON, *_STOPPING, *_OWN)
        self.original_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        mask = sum(1 << (number - 1) for number in signals)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.signalfd(-1, struct.pack("=16Q", mask, *(0,) * 15), _FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "signalfd")

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return int(self._fd)

    def receive(self) -> list[tuple[int, bool]]:
        """Return what arrived: (signal number, whether the kernel sent it, as a terminal's keys do)."""
        try:
            data = os.read(self._fd, 16 * _RECORD_BYTES)
        except BlockingIOError:
            return []
        found = []
        for offset in range(0, len(data), _RECORD_BYTES):
            signo, _, code = _RECORD.unpack_from(data, offset)
            found.append((signo, code == _SI_KERNEL))
        return found

    def close(self) -> None:
        """Give the signals back their old mask."""
        os.close(self._fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.original_mask)


def is_passed_on(signo: int) -> bool:
    """Whether a signal that a user sends to the host is meant for the program."""
    return signo in _PASSED_ON


def is_from_foreign_group(signo: int) -> bool:
    """Whether the signal is one that stops background jobs at a terminal."""
    return signo in _STOPPING
