"""Lets the session's process become another program, while a copy of it goes on with the session.

The program's first process has the session's own process as its shadow. When it executes another program, that
process must become it: its id, parent and descriptors are the program's. So a copy is made first, which waits for
the exec to happen; it then has the connection, the streams and everything else, and nothing of the program's. It is
no child of the new program, which may wait for its children: a process in between, which ends at once, sees to that.
How the program ends is told by the guard (`ptserver.sessions.guard`).

Thread rules: the session's thread.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Callable

from ptserver.sessions.guard import die_with
from ptserver.shadow.descriptors import Descriptors

_NUMBER = struct.Struct("=i")
_FAILED = b"x"


def become_program(become: Callable[[], int], descriptors: Descriptors, guard: socket.socket) -> int | None:
    """Become another program by *become*, which returns the errno if that fails, as this does; None in the copy.

    Raises:
        OSError: there can be no more processes.
    """
    parent = os.getppid()
    with descriptors.unlimited():
        reading, writing = (descriptors.keep(fd) for fd in os.pipe2(os.O_CLOEXEC))
    between = os.fork()
    if between == 0:
        if os.fork():
            os._exit(0)
        os.close(writing)
        if os.read(reading, 1) == _FAILED:
            os._exit(0)
        os.close(reading)
        _take_over(descriptors, guard, parent)
        return None
    os.waitpid(between, 0)
    os.close(reading)
    failure = become()
    with contextlib.suppress(BrokenPipeError):
        os.write(writing, _FAILED)
    os.close(writing)
    return failure


def program_status(guard: socket.socket) -> int | None:
    """Return the wait status of the program that this process's maker became, once the guard tells; else None."""
    packet = guard.recv(_NUMBER.size)
    return _NUMBER.unpack(packet)[0] if packet else None


def _take_over(descriptors: Descriptors, guard: socket.socket, parent: int) -> None:
    descriptors.close_programs()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd != null:
            os.dup2(null, fd)
    os.setsid()  # its terminal and its group are the program's
    guard.send(_NUMBER.pack(os.getpid()))
    die_with(parent)
