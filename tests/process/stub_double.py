"""A stub host reduced to what the stub needs of one: it answers hypercalls and nothing else.

`StubDouble` starts a program under a seccomp filter that notifies on hypercalls alone, so all else runs natively. It
is run as a script too: `stub_double.py FD PROGRAM ARGUMENTS...` installs the filter in itself, sends the listener
over the socket FD, and becomes the program.

One thread per double reads the listener; a test's own thread asks it by the methods below, under one lock.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

_FIRST, _LAST = 0xFFF0, 0xFFFF

_NOTIF_RECV, _NOTIF_SEND, _ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_REQUEST = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")


def _become(fd: int, arguments: list[str]) -> None:
    """Install the filter, send its listener over `fd`, execute PROGRAM with the rest as argv."""
    code, jump_ge, jump_gt, ret = 0x20, 0x35, 0x25, 0x06
    notify, allow = 0x7FC00000, 0x7FFF0000
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in [
            (code, 0, 0, 0),
            (jump_ge, 0, 2, _FIRST),
            (jump_gt, 1, 0, _LAST),
            (ret, 0, 0, notify),
            (ret, 0, 0, allow),
        ]
    )
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)
    listener = libc.syscall(317, 1, 8, ctypes.create_string_buffer(fprog))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    with socket.socket(fileno=fd) as channel:
        socket.send_fds(channel, [b"x"], [listener])
    os.close(listener)
    os.execv(arguments[0], arguments[1:])


class StubDouble:
    """A running program, its listener, and what it asked.

    `refuse` is (errno, message) for HELLO; `info` the text of INFO. `calls` holds (number, pid, request) in order.
    """

    def __init__(
        self,
        program: os.PathLike[str],
        *arguments: str,
        argv0: str | None = None,
        refuse: tuple[int, bytes] | None = None,
        info: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.calls: list[tuple[int, int, bytes]] = []
        self._refuse, self._info = refuse, info
        self._watches: dict[int, tuple[int, int, int, int]] = {}
        self._changed = threading.Condition()
        self._wake_read, self._wake_write = os.pipe()
        path = os.fspath(program)
        # Standard input stays open and empty until the double is done with the program.
        stdin, self._stdin_write = os.pipe()
        ours, theirs = socket.socketpair()
        launcher = [sys.executable, "-I", "-S", __file__, str(theirs.fileno())]
        with ours, theirs:
            self.process = subprocess.Popen(
                [*launcher, path, argv0 or path, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                text=True,
            )
            theirs.close()
            os.close(stdin)
            _, (self._listener,), _, _ = socket.recv_fds(ours, 1, 1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> "StubDouble":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        if self._listener >= 0:
            self.abandon()
        os.close(self._wake_read)
        os.close(self._stdin_write)

    def abandon(self) -> None:
        """Close the listener, as a stub host's death does: hypercalls then end with ENOSYS."""
        os.close(self._wake_write)
        self._thread.join()
        os.close(self._listener)
        self._listener = -1

    def wait_for_watch(self) -> None:
        """Return once the program waits in WATCH. Raises: TimeoutError if it does not come to that."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._watches, timeout=30):
                raise TimeoutError(f"no WATCH, only {self.calls}")

    def read_until(self, line: str) -> str:
        """Return what the program writes to standard output up to and with `line`, or to its end."""
        assert self.process.stdout is not None
        text = ""
        while (got := self.process.stdout.readline()) not in ("", line + "\n"):
            text += got
        return text + got

    def watching(self) -> Sequence[tuple[int, int, int, int]]:
        """(tid, buffer address, its length, nth call) of each thread that waits in WATCH."""
        with self._changed:
            return list(self._watches.values())

    def lose(self, reason: bytes) -> None:
        """Let WATCH return with `reason`, written as it is."""
        with self._changed:
            for notification, (tid, address, size, _) in self._watches.items():
                _write(tid, address, reason[:size])
                self._answer(notification, 0, 0)
            self._watches.clear()

    def finish(self) -> tuple[int, str, str]:
        """Wait for the program's end; returns (return code, the rest of standard output, standard error)."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def count(self, number: int) -> int:
        """How often the hypercall `number` was made."""
        with self._changed:
            return sum(call[0] == number for call in self.calls)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, 0)
        while True:
            events = dict(poll.poll())
            if self._wake_read in events or events[self._listener] & select.POLLHUP:
                return  # abandoned, or nobody is left under the filter
            request = bytearray(_REQUEST.size)
            try:
                fcntl.ioctl(self._listener, _NOTIF_RECV, request)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # a signal has ended the call meanwhile
                raise
            notification, tid, _, number, _, _, *arguments = _REQUEST.unpack(request)
            with self._changed:
                self._serve_one(notification, tid, number, arguments)
                self._changed.notify_all()

    def _serve_one(self, notification: int, tid: int, number: int, arguments: list[int]) -> None:
        address, size = arguments[:2]
        if number == _FIRST:
            self.calls.append((number, tid, _read(tid, address, size)))
            code, message = self._refuse or (0, b"")
            _write(tid, arguments[2], message[: arguments[3]])
            self._answer(notification, 0, code)
        elif number == _FIRST + 1:
            self.calls.append((number, tid, b""))
            self._watches = {key: value for key, value in self._watches.items() if self._valid(key)}
            nth = sum(call[0] == number for call in self.calls)
            self._watches[notification] = (tid, address, size, nth)
        elif number == _FIRST + 2:
            self.calls.append((number, tid, b""))
            _write(tid, address, self._info[:size])
            self._answer(notification, len(self._info), 0)
        else:
            self._answer(notification, 0, errno.ENOSYS)

    def _valid(self, notification: int) -> bool:
        try:
            fcntl.ioctl(self._listener, _ID_VALID, struct.pack("=Q", notification))
        except OSError:
            return False
        return True

    def _answer(self, notification: int, value: int, code: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # interrupted; the stub will call again
            fcntl.ioctl(self._listener, _NOTIF_SEND, _RESPONSE.pack(notification, value, -code, 0))


def _read(tid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), size, address)


def _write(tid: int, address: int, data: bytes) -> None:
    if data:
        with open(f"/proc/{tid}/mem", "r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), data, address)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
