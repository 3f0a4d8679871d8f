"""Calls about a process or thread by its number: affinity, scheduling, priority.

The program knows its processes by the ids of their shadows, and so it says these. What they mean is the process that
executes: here the number is another one, and the host makes the call in the program's place. A program that has been
executed is at the server, as is what is no process of the program: of those the shadow is asked.

Thread rules: the host's thread.
"""

import os
from collections.abc import Iterable

from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.hosts.policy import BY_NUMBER
from ptserver.shadow.execute import Executed, execute
from stepping.syscalls.marshal import Args

#: Which first argument says that the number is no group's and no user's. Source: setpriority(2), ioprio_set(2).
_OF_PROCESSES = {"getpriority": 0, "setpriority": 0, "ioprio_get": 1, "ioprio_set": 1}
_INT = 0xFFFFFFFF


def is_of_caller(call: PendingCall) -> bool:
    """Whether one of these calls says "the caller" or names no process, so that the thread makes it itself."""
    assert call.row is not None
    name = call.row.name
    kind = _OF_PROCESSES.get(name)
    return not call.args[BY_NUMBER[name]] & _INT or (kind is not None and call.args[0] & _INT != kind)


def make_here(call: PendingCall, processes: Iterable[Process]) -> Executed | None:
    """Make one of these calls if what it is about is here, and return the result; None if it is at the server.

    processes: of the program.
    """
    row = call.row
    assert row is not None
    index = BY_NUMBER[row.name]
    who = call.args[index] & _INT
    tid = _find(who, call.process, processes)
    if tid is None:
        return None
    _, ins, outs, *_ = call.gathered
    return execute(row, _with(call.args, index, tid), ins, outs)


def _with(args: Args, index: int, value: int) -> Args:
    changed = list(args)
    changed[index] = value
    return (changed[0], changed[1], changed[2], changed[3], changed[4], changed[5])


def _find(who: int, caller: Process, processes: Iterable[Process]) -> int | None:
    """Return the number here of a process or thread of the program; C libraries know threads by that as well."""
    known = [process for process in processes if not process.left]
    for process in known:
        if process.id == who:
            return process.pid
    for process in (caller, *known):
        for tid in (process.exchanged(who), who):
            if os.path.exists(f"/proc/{process.pid}/task/{tid}"):
                return tid
    return None
