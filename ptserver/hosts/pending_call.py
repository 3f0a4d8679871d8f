"""Calls that a stub host has taken, and the processes of the program that make them."""

import contextlib
import os
from collections.abc import Callable

from stepping.errors import MemoryFaultError
from stepping.listener import Notification
from stepping.remote_memory import RemoteMap
from stepping.remote_vectors import INDIRECT, touches
from stepping.syscalls import Syscall
from stepping.syscalls.marshal import Args, Gathered, ProgramMemory
from stepping.tracee_memory import TraceeMemory


class Process:
    """A process of the program: its id, its memory, and a descriptor that stands for it (pidfd_open(2)).

    id: what the program and its server call it; its own number here, unless the server gave it another. left: it has
    executed another program at the server, and what is left of it here only has to end. remote: its remote variables.
    The memory is opened when it is first wanted: a process that has ended and was not waited for has none.
    """

    __slots__ = ("_memory", "id", "left", "pid", "pidfd", "remote")

    def __init__(self, pid: int, id_at_server: int = 0) -> None:
        self.pid = pid
        self.id = id_at_server or pid
        self.left = False
        self.pidfd = os.pidfd_open(pid)
        self._memory: TraceeMemory | None = None
        self.remote: RemoteMap | None = None

    @property
    def view(self) -> ProgramMemory:
        """The memory as the program sees it, its remote variables included. Raises: OSError if it has ended."""
        return self.remote or self.memory

    @property
    def memory(self) -> TraceeMemory:
        """The memory. Raises: OSError if the process has ended."""
        if self._memory is None:
            self._memory = TraceeMemory(self.pid)
        return self._memory

    def exchanged(self, tid: int) -> int:
        """Return by which number the program knows thread *tid* of the process, and the other way round.

        Its first thread has the process's id. Another thread may have that number here, and is known by the first's.
        """
        return self.id if tid == self.pid else self.pid if tid == self.id else tid

    def reopen(self) -> None:
        """Take hold of the memory that the process has since an exec."""
        fresh = TraceeMemory(self.pid)
        if self._memory is not None:
            self._memory.close()
        self._memory = fresh

    def close(self) -> None:
        """Give up the descriptors."""
        if self._memory is not None:
            self._memory.close()
        os.close(self.pidfd)


_NOT_GATHERED = Gathered((0, 0, 0, 0, 0, 0), {}, {}, {})


class PendingCall:
    """A call that was taken and not yet answered, or whose answer found nobody waiting.

    row is None for a hypercall. answer: gives the answer, once it is known; the call waits as long as it is None.
    result: that answer's value and errno, if its thread was not there to take it; its buffers are filled.
    fd: a descriptor of this process that the answer will give to the program, or -1. started_ns: when it was taken,
    if it is traced, else 0; goid: the goroutine that makes it, if that is wanted and known, else 0; stack: where, as
    `CallStacks` has it, if that is wanted and known, else empty.
    """

    __slots__ = (
        "answer",
        "args",
        "fd",
        "gathered",
        "goid",
        "id",
        "ip",
        "notification_id",
        "nr",
        "process",
        "result",
        "row",
        "stack",
        "started_ns",
        "tid",
    )

    def __init__(
        self, call_id: int, notification: Notification, process: Process, row: Syscall | None
    ) -> None:
        self.id = call_id
        self.notification_id, self.tid, _, self.nr, _, self.ip, a0, a1, a2, a3, a4, a5 = notification
        self.args: Args = (a0, a1, a2, a3, a4, a5)
        self.process = process
        self.row = row
        self.gathered = _NOT_GATHERED
        self.answer: Callable[[], None] | None = None
        self.result: tuple[int, int] | None = None
        self.fd = -1
        self.started_ns = 0
        self.goid = 0
        self.stack = b""

    @property
    def touches_remote(self) -> bool:
        """Whether a buffer of it is remote, which the program's kernel cannot touch."""
        remote = self.process.remote
        if remote is None:
            return False
        sizes = {index: len(data) for index, data in self.gathered.ins.items()} | self.gathered.outs
        if any(remote.touches(self.args[index], max(size, 1)) for index, size in sizes.items()):
            return True
        row = self.row
        with contextlib.suppress(MemoryFaultError):
            return row is not None and any(
                touches(row, index, self.args, remote)
                for index, arg in enumerate(row.args)
                if arg.kind in INDIRECT and self.args[index]
            )
        return False

    def is_repeated_by(self, notification: Notification) -> bool:
        """Whether *notification* is this call again, restarted by the kernel after a signal."""
        return self.nr == notification.nr and self.ip == notification.ip and self.args == notification[6:12]


def thread_group(tid: int) -> int | None:
    """Return the process of thread *tid*, None if there is no such thread."""
    try:
        with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("Tgid:"):
                    return int(line[5:])
    except OSError:
        pass
    return None
