"""Writes the lines of a trace to a descriptor, many at once, and never lets a full disk disturb the program.

Thread rules: a `LineWriter` belongs to one thread.
"""

import errno
import os
import select
from collections.abc import Callable

from ptserver.tracelog.errors import TraceOutputError

#: So many bytes are kept back before they are written without being asked.
_FULL_BYTES = 1 << 16

#: What a reader that went away means: the user has seen enough, so nothing is said.
_READER_GONE = errno.EPIPE

#: What takes one-line remarks about a trace.
Note = Callable[[str], None]


def complain_on_stderr(message: str) -> None:
    """Print one line on standard error; if that fails too, there is nobody to tell."""
    try:
        os.write(2, f"ptserver: {message}\n".encode(errors="replace"))
    except OSError:
        pass


class LineWriter:
    """Collects lines and writes them to a file descriptor.

    After a failed write it says so once, through *complain*, and drops all lines that come later.
    """

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        close_fd: bool = False,
        complain: Callable[[str], None] = complain_on_stderr,
    ) -> None:
        self._fd = fd
        self._name = name
        self._close_fd = close_fd
        self._complain = complain
        self._pending: list[bytes] = []
        self._size = 0
        self._broken = False

    @classmethod
    def open(
        cls,
        path: str | None,
        *,
        complain: Callable[[str], None] = complain_on_stderr,
        keep: Callable[[int], int] | None = None,
    ) -> "LineWriter":
        """Return a writer to a new file at *path*; to standard error for None, to standard output for `-`.

        keep: moves the file's descriptor out of a program's way.

        Raises:
            TraceOutputError: the file cannot be made.
        """
        if path is None:
            return cls(2, "standard error", complain=complain)
        if path == "-":
            return cls(1, "standard output", complain=complain)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise TraceOutputError(f"cannot write the trace to {path}: {error.strerror}") from error
        return cls(keep(fd) if keep is not None else fd, path, close_fd=True, complain=complain)

    @property
    def is_terminal(self) -> bool:
        """Whether the lines go to a terminal."""
        return os.isatty(self._fd)

    def write(self, line: bytes) -> None:
        """Take a line, its newline included."""
        self._pending.append(line)
        self._size += len(line)
        if self._size >= _FULL_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all lines that were taken."""
        if not self._pending:
            return
        data = memoryview(b"".join(self._pending))
        self._pending.clear()
        self._size = 0
        while data and not self._broken:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                select.select((), (self._fd,), ())  # someone made the terminal or pipe non-blocking
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Write what is left, and close the file if it was opened here."""
        self.flush()
        if self._close_fd and self._fd >= 0:
            try:
                os.close(self._fd)
            except OSError as error:  # a network file system tells of a full disk only now
                self._give_up(error)
            self._fd = -1

    def _give_up(self, error: OSError) -> None:
        if not self._broken and error.errno != _READER_GONE:
            reason = error.strerror or str(error)
            self._complain(f"cannot write the trace to {self._name}: {reason}; the rest of it is lost")
        self._broken = True


def wants_colour(writer: LineWriter, environment: dict[str, str] | None = None) -> bool:
    """Return whether to write in colours: on a terminal that knows them, unless the user said NO_COLOR."""
    variables = os.environ if environment is None else environment
    if variables.get("NO_COLOR") or variables.get("TERM", "dumb") == "dumb":
        return False
    return writer.is_terminal
