"""Finds processes that outlive what started them: this process adopts orphans, so all are its descendants."""

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
#: Of starttime in /proc/PID/stat, after the name. Source: proc(5).
_START = 19


class LeftoversError(AssertionError):
    """Processes were still there after the time they were given."""


@contextlib.contextmanager
def none_left(seconds: float = 10) -> Iterator[None]:
    """Check that every process started inside is gone soon after the end; kill what is not.

    Raises: LeftoversError names them.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = set(descendants(os.getpid()))
    yield
    left = _await_end(before, seconds)
    if left:
        described = [f"{pid} {_command_of(pid)}" for pid in left]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _await_end(before, seconds)
        raise LeftoversError(f"left behind: {'; '.join(described)}")


def descendants(root: int) -> dict[int, str]:
    """Return the state letter of every process below *root*, by pid (Z: ended, not yet waited for).

    They are in the order in which they were started, which pids are not when those begin anew.
    """
    children: dict[int, list[int]] = {}
    states: dict[int, str] = {}
    starts: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                states[int(folder.name)] = words[0]
                starts[int(folder.name)] = int(words[_START])
                children.setdefault(int(words[1]), []).append(int(folder.name))
    found: list[int] = []
    below = [root]
    while below:
        more = children.get(below.pop(), ())
        found += more
        below += more
    return {pid: states[pid] for pid in sorted(found, key=lambda pid: (starts[pid], pid))}


def executable_of(pid: int) -> str:
    """Return the path of what *pid* executes; empty if it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _await_end(before: set[int], seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while True:
        left = []
        for pid, state in descendants(os.getpid()).items():
            if pid in before:
                continue
            if state == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            else:
                left.append(pid)
        remaining = deadline - time.monotonic()
        if not left or remaining <= 0:
            return left
        try:
            pidfd = os.pidfd_open(left[0])
        except ProcessLookupError:
            continue
        select.select([pidfd], [], [], remaining)
        os.close(pidfd)


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "(ended)"
