"""What a host of a spread program knows of its kernel threads."""

from dataclasses import dataclass
from enum import Enum

from stepping.tracee import Tracee


class Doing(Enum):
    """What a thread of the instance is in the midst of."""

    RUNNING = "runs the program"
    ASKING = "is stopped until the home has an answer"
    EXECUTING = "makes a call for a thread elsewhere"
    PARKED = "runs elsewhere"
    IDLE = "is lent to nobody"


@dataclass(slots=True)
class HostThread:
    """A kernel thread here. tid: the program's thread that it is, 0 if it is idle."""

    tracee: Tracee
    tid: int
    doing: Doing
    denied: int | None = None  # the address for whose touch it is to get SIGSEGV
    wanted: bool = False  # whether the home wants it to stop
    used: int = 0  # nanoseconds of processors that it had had when it came, or was last asked about
    altstack: bytes | None = None  # its signal stack, while that is known
    asked: bytes | None = (
        None  # its registers, while it is stopped before a call about which the home is asked
    )
