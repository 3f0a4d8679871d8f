"""An emulated program whose resources are a server's at an address: the emulator is a program under a stub host.

    ptserver run (stub host)  <- listener -  this process: the emulator, and the program on it
              |                                   its calls: by `stepping.door`, which alone the filter takes
           the server

So every call of the program, as far as the server wants it, goes the way of any served program's: streams, processes,
mappings, signals, a lost connection are the stub host's affair. What the emulator does for itself (its libraries, its
memory) stays here. A call that may sleep is made on a thread of its own, since only the server knows whether it
would.

Remote variables are asked for by a hypercall, which the stub host passes on.

Thread rules: the process's main thread.
"""

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING

import msgspec

from ptserver.emulated.away_calls import Away
from ptserver.emulated.guest import Guest
from ptserver.emulated.host import end_as, run_emulated
from ptserver.emulated.processes import own_pid
from ptserver.errors import PtServerError
from ptserver.messages import MemoryResult, Message
from ptserver.remote_memory.stores import StoreLostError
from ptserver.shadow.raw_calls import call_by, raw_call
from ptserver.stub.hypercalls import MEMORY_BYTES, Hypercall
from stepping.door import install_door
from stepping.errors import SteppingError

if TYPE_CHECKING:
    from ptserver.emulated.remote_variables import RemoteVariables
    from ptserver.emulated.trace import EmulatedTrace


def main(fd: int) -> None:
    """Be the emulator of the `Guest` in the file at descriptor *fd*; end as its program does."""
    guest = msgspec.msgpack.decode(os.pread(fd, os.fstat(fd).st_size, 0), type=Guest)
    os.close(fd)
    call_by(install_door())
    try:
        with _trace(guest) as sink:
            status = run_emulated(
                guest.path,
                guest.argv,
                guest.env,
                seed=guest.seed,
                sink=sink,
                remote=_remote(guest),
                away=Away(guest.claimed, guest.everything, guest.stderr, _linker_path(guest)),
            )
    except (PtServerError, SteppingError, OSError) as error:
        os.write(guest.stderr, f"ptserver: {error}\n".encode(errors="replace"))
        os._exit(getattr(error, "exit_status", 77))
    end_as(status)


def _trace(guest: Guest) -> "contextlib.AbstractContextManager[EmulatedTrace | None]":
    trace = guest.trace
    if trace is None:
        return contextlib.nullcontext()
    from ptserver.emulated.trace import open_trace

    if guest.everything:  # what the program has at these numbers is at the server
        os.dup2(guest.stderr, 2)
        if guest.stdout is not None:
            os.dup2(guest.stdout, 1)
    return open_trace(trace, guest.path, guest.argv, guest.seed, own_pid())


def _linker_path(guest: Guest) -> str | None:
    return f"/proc/self/fd/{guest.linker}" if guest.linker is not None else None


def _remote(guest: Guest) -> "RemoteVariables | None":
    if not guest.remote:
        return None
    from ptserver.emulated.remote_variables import RemoteVariables
    from ptserver.remote_memory.hosting import plan_remote
    from ptserver.remote_memory.store import RemoteStore

    plan = plan_remote(guest.path, guest.remote, emulated=True, quiet=True)
    assert plan is not None
    return RemoteVariables(guest.path, plan, guest.remote_trace, RemoteStore(_ask), stderr=guest.stderr)


_answer = ctypes.create_string_buffer(MEMORY_BYTES)


def _ask(message: Message) -> MemoryResult:
    """Have the stub host ask the server."""
    request = msgspec.msgpack.encode(message)
    size = raw_call(Hypercall.MEMORY, request, len(request), ctypes.addressof(_answer), MEMORY_BYTES)
    if size < 0:
        raise StoreLostError("the server is lost")
    return msgspec.msgpack.decode(_answer.raw[:size], type=MemoryResult)
