"""Runs a program with pipes or a terminal at its standard streams, and lets a test talk with it without guessing."""

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.leftovers import descendants, executable_of

PATIENCE_SECONDS = 60.0

#: Starts a process, here or elsewhere.
Popen = Callable[..., "subprocess.Popen[Any]"]


@dataclass(frozen=True)
class Ended:
    """How a program ended: exit status, or minus the number of the signal that killed it; what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


class Collected:
    """What arrives on a descriptor, read by a thread of its own until the end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = bytearray()
        self._ended = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:  # EIO: no process has the terminal open any more
                data = b""
            with self._condition:
                self._data += data
                self._ended = not data
                self._condition.notify_all()
            if not data:
                return

    def wait_for(self, text: bytes, start: int = 0) -> int:
        """Wait until *text* has arrived at or after offset *start*; return the offset after it."""

        def arrived() -> bool:
            return self._ended or text in self._data[start:]

        with self._condition:
            self._condition.wait_for(arrived, PATIENCE_SECONDS)
            at = self._data.find(text, start)
            assert at >= 0, f"waited for {text!r}, got {bytes(self._data)!r}"
            return at + len(text)

    def so_far(self) -> bytes:
        """Return what has arrived."""
        with self._condition:
            return bytes(self._data)

    def finish(self) -> bytes:
        """Return everything, after the end."""
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "its output does not end"
        return bytes(self._data)


class Running:
    """A program that was started; `program` is the file of the fixture that it is, or runs."""

    def __init__(self, child: "subprocess.Popen[bytes]", program: Path, terminal: int | None) -> None:
        self.child = child
        self.program = program
        self.terminal = terminal
        self._position = 0
        if terminal is None:
            assert child.stdout is not None
            assert child.stderr is not None
            self.stdout = Collected(child.stdout.fileno())
            self.stderr = Collected(child.stderr.fileno())
        else:
            self.stdout = self.stderr = Collected(terminal)

    def expect(self, text: str) -> None:
        """Wait until it has written *text* to standard output, after what was last expected."""
        self._position = self.stdout.wait_for(text.encode(), self._position)

    def send(self, data: bytes) -> None:
        """Write to its standard input, or type at its terminal."""
        if self.terminal is not None:
            os.write(self.terminal, data)
            return
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.write(data)
            self.child.stdin.flush()

    def close_stdin(self) -> None:
        """Let it find the end of its standard input."""
        if self.child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.child.stdin.close()

    def signal(self, signo: int) -> None:
        """Send a signal to what was started, as a user would."""
        self.child.send_signal(signo)

    def pid_of_program(self) -> int:
        """Return the pid of the first process that executes the fixture, wherever below us it is."""
        for pid in (self.child.pid, *descendants(self.child.pid)):
            if executable_of(pid) == str(self.program):
                return pid
        raise AssertionError(f"no process executes {self.program}")

    def resize(self, columns: int, rows: int) -> None:
        """Give its terminal another size."""
        assert self.terminal is not None
        set_size(self.terminal, columns, rows)

    def finish(self, seconds: float | None = None) -> Ended:
        """Wait for its end, at most *seconds*, or `PATIENCE_SECONDS`."""
        self.close_stdin()
        status = self.child.wait(PATIENCE_SECONDS if seconds is None else seconds)
        if self.terminal is not None:
            return Ended(status, self.stdout.finish(), b"")
        return Ended(status, self.stdout.finish(), self.stderr.finish())


def set_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


@contextlib.contextmanager
def started(
    command: Sequence[str | Path],
    program: Path,
    *,
    env: Mapping[str, str],
    cwd: Path | str,
    terminal: bool = False,
    pass_fds: Sequence[int] = (),
    popen: Popen = subprocess.Popen,
) -> Iterator[Running]:
    """Start *command*; with *terminal*, as the leader of a session whose terminal is a new one, 80x24."""
    if terminal:
        mine, theirs = os.openpty()
        set_size(mine, 80, 24)
        child = popen(
            ["setsid", "--ctty", *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
        )
        os.close(theirs)
    else:
        mine = None
        pipe = subprocess.PIPE
        child = popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd=cwd)
    try:
        yield Running(child, program, mine)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if mine is not None:
            os.close(mine)
