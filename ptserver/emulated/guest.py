"""What a stub host tells the emulator's process that it starts for a program; see `ptserver.emulated.away`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ptserver.remote_memory.options import Wanted
from ptserver.tracelog.options import TraceOptions

_BOOT = "import sys; sys.path.insert(0, {root!r}); from ptserver.emulated.away import main; main(int(sys.argv[1]))"


class Guest(msgspec.Struct, frozen=True):
    """What the emulator's process is told.

    path, argv, env: the program; seed: see `run_emulated`; claimed: the calls that the server names; everything:
    whether the program's resources are the server's; stderr: a descriptor for what is said to the user; remote: what
    of its memory is the server's, with the file for a log of accesses; logged: a pickled `TraceOptions`, or empty;
    stdout: a descriptor for a log that goes there; linker: one that has the server's dynamic linker, if that is
    another than this machine's.
    """

    path: str
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    seed: int | None
    claimed: frozenset[str]
    everything: bool
    stderr: int
    remote: Wanted | None = None
    remote_trace: str | None = None
    logged: bytes = b""
    stdout: int | None = None
    linker: int | None = None

    @property
    def trace(self) -> "TraceOptions | None":
        """How its calls are to be logged, if they are."""
        if not self.logged:
            return None
        import pickle

        options = pickle.loads(self.logged)
        assert isinstance(options, TraceOptions)
        return options


def logged_as(trace: "TraceOptions | None") -> bytes:
    """Return what `Guest.logged` is for these options."""
    if trace is None:
        return b""
    import pickle

    return pickle.dumps(trace)


def guest_command(guest: Guest) -> tuple[str, list[bytes], int]:
    """Return what to execute for *guest*, with its arguments, and a descriptor that is to be inherited."""
    fd = os.memfd_create("ptserver-guest", 0)
    os.write(fd, msgspec.msgpack.encode(guest))
    os.set_inheritable(guest.stderr, True)
    for given in (guest.stdout, guest.linker):
        if given is not None:
            os.set_inheritable(given, True)
    root = str(Path(__file__).resolve().parent.parent.parent)
    code = _BOOT.format(root=root).encode()
    return sys.executable, [os.fsencode(sys.executable), b"-c", code, b"%d" % fd], fd


def own_environment() -> Sequence[bytes]:
    """Return what the emulator itself needs of this process's environment."""
    return [
        name + b"=" + value
        for name, value in os.environb.items()
        if name.startswith((b"PYTHON", b"PATH", b"LD_", b"VIRTUAL_ENV"))
    ]
