"""Sends a signal to a thread as from somebody else: by the id that a program knows its own process by.

C libraries reach the threads of their process by signals (pthread_cancel, setuid), and let nobody else do so: they
look at the sender's id. The kernel lets no process claim another's, but a tracer may change what is delivered. So the
thread is seized until the signal comes.

Thread rules: one thread, the one that launched the program.
Source: ptrace(2), sigaction(2); glibc's nptl/pthread_cancel.c.
"""

import struct

from stepping import ptrace_api
from stepping.fork_call import next_stop
from stepping.ptrace_api import Option
from stepping.tracee import Tracee
from stepping.wait_status import WaitKind

_SENDER = struct.Struct("=i")
_SENDER_OFFSET = 16  # siginfo: signo, errno, code, padding


def set_sender(tid: int, sender: int) -> None:
    """Have the signal that thread *tid* is stopped for be from process *sender*."""
    info = bytearray(ptrace_api.getsiginfo(tid))
    _SENDER.pack_into(info, _SENDER_OFFSET, sender)
    ptrace_api.setsiginfo(tid, bytes(info))


class SentAs:
    """One signal on its way to thread *tid*. is_over: whether it was delivered, or its thread is gone."""

    def __init__(self, pid: int, tid: int, signo: int, sender: int) -> None:
        """Seize the thread; the signal must be sent now. sender: whom it is to be from.

        Raises:
            PtraceRefusedError: the kernel does not allow it.
            TraceeGoneError: there is no such thread.
        """
        self.tid = tid
        self.is_over = False
        self._signo = signo
        self._sender = sender
        self._thread = Tracee.seize(tid, pid, Option.EXITKILL)

    def advance(self) -> None:
        """Go on if the thread has stopped.

        Raises:
            TraceeGoneError: it is dead.
        """
        thread = self._thread
        while not self.is_over and (status := next_stop(thread)) is not None:
            if not status.is_stop:
                self.is_over = True
            elif status.kind is WaitKind.SIGNAL_DELIVERY and status.signo == self._signo:
                set_sender(thread.tid, self._sender)
                self.is_over = True
                thread.detach()
            else:
                thread.resume()
