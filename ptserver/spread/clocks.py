"""One monotonic clock for a spread program: that of host 0's machine.

When a host joins, the home asks it for its clock several times and takes the answer that came fastest; half of its
round trip bounds the error. The host then gives its instance a time namespace whose clock is the home's, so reading
the clock costs what it always does. CLOCK_MONOTONIC and CLOCK_BOOTTIME are offset; the time of day is each machine's
own. Source: time_namespaces(7).
"""

import ctypes
import os
import select
import time
from typing import Any

from ptserver.errors import ConnectionLostError
from ptserver.net.connection import Connection
from ptserver.spread.messages import ClockIs, TellClock
from stepping.errors import SteppingError

_PROBES = 8
_PATIENCE_SECONDS = 10.0
_CLONE_NEWTIME = 0x80
_SECOND_NS = 1_000_000_000
_OFFSETS = "/proc/self/timens_offsets"

_libc = ctypes.CDLL(None, use_errno=True)


def measure_ns(connection: Connection[Any]) -> tuple[int, int]:
    """Return by how much this machine's monotonic clock is ahead of the peer's, and how long a round trip takes.

    The first is 0 if that cannot be told from none.

    Raises:
        ConnectionLostError: the peer does not answer.
    """
    best = None
    for _ in range(_PROBES):
        start = time.monotonic_ns()
        connection.send(TellClock())
        theirs = _receive(connection)
        end = time.monotonic_ns()
        probe = (end - start, (start + end) // 2 - theirs)
        best = min(best, probe) if best is not None else probe
    assert best is not None
    round_trip, offset = best
    return offset if abs(offset) > round_trip else 0, round_trip


def _receive(connection: Connection[Any]) -> int:
    if not connection.drain(_PATIENCE_SECONDS):
        raise ConnectionLostError("the host takes nothing")
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if not connection.has_received:
            poll.poll(_PATIENCE_SECONDS * 1000)
        for message in connection.receive():
            if isinstance(message, ClockIs):
                return message.monotonic_ns
    raise ConnectionLostError("the host does not tell its clock")


def shift_clock(offset_ns: int) -> None:
    """Have the processes that this one starts from now on see a monotonic clock *offset_ns* ahead of this one's.

    Raises:
        SteppingError: the kernel refuses.
    """
    if not offset_ns:
        return
    try:
        before = {words[0]: int(words[1]) * _SECOND_NS + int(words[2]) for words in _read_offsets()}
        if _libc.unshare(_CLONE_NEWTIME) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        lines = []
        for clock in ("monotonic", "boottime"):
            seconds, nanoseconds = divmod(before[clock] + offset_ns, _SECOND_NS)
            lines.append(f"{clock} {seconds} {nanoseconds}\n")
        with open(_OFFSETS, "w", encoding="ascii") as file:
            file.write("".join(lines))
    except OSError as error:
        raise SteppingError(
            f"cannot give the program the clock of its first host: {error.strerror}"
        ) from error


def _read_offsets() -> list[list[str]]:
    with open(_OFFSETS, encoding="ascii") as file:
        return [line.split() for line in file]
