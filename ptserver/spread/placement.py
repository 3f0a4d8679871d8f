"""Where threads run: policies over what is known of a goroutine and of the hosts. Pure; users can write one.

A policy is asked when a thread has computed for so long that Go's scheduler wants to interrupt it (some 70 ms), and
says at which host it goes on. A class of one's own, given as ``module:Class``, has the members of `Placement`; it
decides by its arguments alone, and may keep what it likes of them.
"""

import importlib
import os
import random
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from ptserver.errors import PtServerError

#: A goroutine that lately fetched more pages than this from one other host talks with who is there.
TALK_PAGES = 60


class PlacementError(PtServerError):
    """`--place` names no policy."""

    exit_status = 64


class HostLoad(NamedTuple):
    """host: its number; running: how many threads there do not sleep, the one that is asked about included."""

    host: int
    running: int


class GoroutineFacts(NamedTuple):
    """What is known of the goroutine that a busy thread runs.

    here: its host. address: of its g, which names it while it lives; 0 if it is not known, and then the other fields
    are the thread's. computed: how often it was found to compute; moves: how often it has moved then; pulls: how many
    pages it lately fetched from each other host; what is older counts less, by half each time that it is asked about.
    """

    here: int
    address: int
    computed: int
    moves: int
    pulls: Mapping[int, int]


class Placement(Protocol):
    """A policy. brings_back: whether a thread that falls asleep elsewhere returns to host 0.

    look_seconds: how often threads that run are to be asked about, besides when Go interrupts them; 0 for never.
    """

    brings_back: bool
    look_seconds: float

    def place(self, goroutine: GoroutineFacts, loads: list[HostLoad]) -> int:
        """Return the host at which *goroutine* is to go on; it stays if no thread may go there."""


class Stay:
    """Nothing moves unless the program says so."""

    brings_back = False
    look_seconds = 0.0

    def place(self, goroutine: GoroutineFacts, loads: list[HostLoad]) -> int:
        """Return where it is."""
        return goroutine.here


class IdleHosts:
    """Busy threads go from host 0 to idle hosts, one to each, and come back when they sleep."""

    brings_back = True
    look_seconds = 0.0

    def place(self, goroutine: GoroutineFacts, loads: list[HostLoad]) -> int:
        """Return an idle host if the goroutine is at host 0 and there is one, else where it is."""
        idle = [load.host for load in loads if load.running == 0]
        return idle[0] if goroutine.here == 0 and idle else goroutine.here


class Together(IdleHosts):
    """As `IdleHosts`, but a goroutine that talks much goes to those with whom it talks."""

    def place(self, goroutine: GoroutineFacts, loads: list[HostLoad]) -> int:
        """Return the host from which it fetched most pages, if those were many; else as `IdleHosts`."""
        ready = {load.host for load in loads}
        talks = {
            host: pages for host, pages in goroutine.pulls.items() if pages > TALK_PAGES and host in ready
        }
        if talks:
            return max(talks, key=lambda host: (talks[host], -host))
        return super().place(goroutine, loads)


class Shuffle:
    """Threads go anywhere, as often as they can: for tests. seed: the same choices again."""

    brings_back = False
    look_seconds = 0.02

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def place(self, goroutine: GoroutineFacts, loads: list[HostLoad]) -> int:
        """Return any host."""
        return self._random.choice(loads).host


POLICIES: dict[str, Callable[[], Placement]] = {"idle": IdleHosts, "stay": Stay, "together": Together}
_RANDOM = "random:"


def load_placement(name: str) -> Placement:
    """Return the policy that *name* says: one of `POLICIES`, ``random:SEED``, or ``module:Class``.

    A module is imported as `python -m` would find it, in the current folder first.

    Raises:
        PlacementError: there is none.
    """
    if name in POLICIES:
        return POLICIES[name]()
    if name.startswith(_RANDOM) and name[len(_RANDOM) :].isdecimal():
        return Shuffle(int(name[len(_RANDOM) :]))
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or not class_name:
        raise PlacementError(
            f"no policy {name!r}: there are {', '.join(POLICIES)}, random:SEED and module:Class"
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        policy: Placement = getattr(importlib.import_module(module_name), class_name)()
    except Exception as error:
        raise PlacementError(f"no policy {name!r}: {type(error).__name__}: {error}") from error
    missing = [each for each in ("brings_back", "look_seconds", "place") if not hasattr(policy, each)]
    if missing:
        raise PlacementError(f"{name!r} is no policy: it has no {', '.join(missing)}")
    return policy
