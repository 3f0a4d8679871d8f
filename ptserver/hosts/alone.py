"""Calls that a remote host answers alone: the server has no process for the program, or is lost.

Thread rules: the host's thread.
"""

import contextlib
import errno
import os
from collections.abc import Callable

from ptserver.hosts.pending_call import PendingCall

_STDERR = 2

Answer = Callable[[PendingCall, int, int, dict[int, bytes]], None]


def serve_signal_to_self(
    call: PendingCall, pid: int, answer: Answer, proceed: Callable[[PendingCall], None]
) -> None:
    """Let the program *pid* signal itself (its own process, or its group, in which it is alone), nobody else."""
    target = call.args[0] & 0xFFFFFFFF
    if target in (pid, 0, (1 << 32) - pid):
        proceed(call)
    else:
        answer(call, 0, errno.ESRCH, {})


def serve_last_words(call: PendingCall, answer: Answer) -> bool:
    """After the connection was lost: print what goes to standard error, let everything else wait.

    Return whether it was answered.
    """
    assert call.row is not None
    if call.row.name == "write" and call.args[0] == _STDERR:
        with contextlib.suppress(OSError):
            os.write(_STDERR, call.gathered.ins.get(1, b""))
        answer(call, call.gathered.args[2], 0, {})
        return True
    return False
