"""`Session`: what a runtime server knows about the run of one program, and may ask for.

Thread rules: the same thread as the server's methods; nothing here waits.
"""

from collections.abc import Callable
from typing import Literal

from ptserver.messages import Machine, Program


class Session:
    """One run of one program, given to the hooks of a `RuntimeServer` and found in every `Call`.

    id: unique at this server; program, machine: what runs, and where, as its stub host says (not checked).
    resources: ``server`` if the program's files and descriptors are those of the machine and process that
    the server runs in, ``host`` if they are the stub host's own.
    """

    def __init__(
        self,
        id: str,
        program: Program,
        machine: Machine,
        resources: Literal["server", "host"],
        *,
        log: Callable[[str], None],
        send_signal: Callable[[int], None],
        keep_descriptor: Callable[[int], int],
    ) -> None:
        self.id = id
        self.program = program
        self.machine = machine
        self.resources: Literal["server", "host"] = resources
        self._log = log
        self._send_signal = send_signal
        self._keep_descriptor = keep_descriptor

    def log(self, text: str) -> None:
        """Write one line to the server's log; it says which session it is about."""
        self._log(text)

    def signal(self, signo: int) -> None:
        """Deliver signal *signo* (Linux number) to the program."""
        self._send_signal(signo)

    def private_fd(self, fd: int) -> int:
        """Return a descriptor of the server's own for what *fd* is open on, and close *fd*.

        Where resources are the server's, low numbers are the program's: whatever a server method opens and
        wants to keep must be moved out of their way by this, before the method returns. The result is
        closed when a child is executed, and belongs to the caller.

        Raises:
            OSError: *fd* is not open, or there are no more descriptors.
        """
        return self._keep_descriptor(fd)
