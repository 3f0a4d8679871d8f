"""Where threads run: policies over the load of hosts. Pure; users can write one.

A policy is asked when a thread has computed for so long that Go's scheduler wants to interrupt it, and says at which
host it goes on.
"""

from typing import NamedTuple, Protocol


class HostLoad(NamedTuple):
    """host: its number; running: how many threads there do not sleep, the one that is asked about included."""

    host: int
    running: int


class Placement(Protocol):
    """A policy. brings_back: whether a thread that falls asleep elsewhere returns to host 0."""

    brings_back: bool

    def place_busy(self, here: int, loads: list[HostLoad]) -> int:
        """Return the host at which a busy thread, now at host *here*, is to go on."""


class Stay:
    """Nothing moves unless the program says so."""

    brings_back = False

    def place_busy(self, here: int, loads: list[HostLoad]) -> int:
        """Return *here*."""
        return here


class IdleHosts:
    """Busy threads go from host 0 to idle hosts, one to each, and come back when they sleep."""

    brings_back = True

    def place_busy(self, here: int, loads: list[HostLoad]) -> int:
        """Return an idle host if *here* is host 0 and there is one, else *here*."""
        idle = [load.host for load in loads if load.running == 0]
        return idle[0] if here == 0 and idle else here


POLICIES: dict[str, type[Placement]] = {"idle": IdleHosts, "stay": Stay}
