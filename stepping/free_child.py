"""A child of a program whose filter has a tracer asked about some calls: it goes on without a tracer.

It has inherited the filter, which without a tracer fails those calls (ENOSYS), and filters are for good. But they
add up, and a call that one filter sends to a listener is not traced, whatever the others say. So the child gets one
more filter, which sends them to a listener of ours, and is let go. Its children have both as well. Who keeps the
listener lets every call proceed.

For the thread that traces. Source: seccomp(2), seccomp_unotify(2); kernel/seccomp.c (which action wins).
"""

import contextlib
import os
import signal
import struct

from stepping import gadget
from stepping.errors import SteppingError, TraceeGoneError
from stepping.instance import take_descriptor
from stepping.listener import Listener
from stepping.tracee import Tracee
from stepping.tracee_memory import TraceeMemory

_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_HEADER = struct.Struct("=H6xQ")
_INSTRUCTION_BYTES = 8


def free_child(child: Tracee, program: bytes) -> Listener | None:
    """Give *child* the filter *program* and let it go; return the listener that it sends calls to.

    child: a new process, stopped before its first instruction, with the gadget page of the one that forked it.

    Returns None, and the child stays a stopped tracee, if it cannot have the filter: the kernel refuses it, for the
    child has given up privileges or has another listener.

    Raises:
        TraceeGoneError: it died.
        MemoryFaultError: it has no gadget page.
    """
    try:
        memory = TraceeMemory(child.pid)
    except OSError as error:
        raise TraceeGoneError(child.tid) from error
    with contextlib.closing(memory):
        header = _HEADER.pack(len(program) // _INSTRUCTION_BYTES, gadget.SCRATCH + _HEADER.size)
        memory.write(gadget.SCRATCH, header + program)
    fd = gadget.inject(child, "seccomp", _SET_MODE_FILTER, _NEW_LISTENER, gadget.SCRATCH)
    if fd < 0:
        return None
    try:
        listener = Listener(take_descriptor(child.pid, fd))
    except (SteppingError, ProcessLookupError) as error:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)  # its calls would wait for nobody
        raise TraceeGoneError(child.tid) from error
    gadget.inject(child, "close", fd)
    child.detach()
    return listener
