"""What an attached program was seen to do in some interval, as values and as JSON: a `Snapshot` a line.

`docs/attach.schema.json` is the schema, made from these classes. Fields may be added, so readers must ignore those
that they do not know. Numbers are nanoseconds and bytes. All text comes from the program, and what cannot be printed
in it is escaped already.
"""

import json
import math
from collections.abc import Callable
from inspect import cleandoc

import msgspec

from ptserver import messages
from ptserver.inspection.goroutine_list import FrameRow
from ptserver.inspection.goroutine_stats import Totals


class Use(messages.Use, frozen=True, omit_defaults=True, gc=False):
    """What was used. cpu_ns and blocked_ns are estimates, cpu_error_ns is the standard deviation of the first."""

    @classmethod
    def of(cls, totals: Totals) -> "Use":
        """Return the sums as they are now."""
        return cls(*[getattr(totals, name) for name in cls.__struct_fields__])

    def since(self, before: "Use") -> "Use":
        """Return what was added since *before*. Deviations add up, and are subtracted, by their squares."""
        fields = self.__struct_fields__
        grown = {name: getattr(self, name) - getattr(before, name) for name in fields}
        grown["cpu_error_ns"] = math.isqrt(max(0, self.cpu_error_ns**2 - before.cpu_error_ns**2))
        return Use(**grown)


class GoroutineUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """A goroutine. at: where it is; site: the go statement that made it; stack: an index of `Snapshot.stacks`.

    state, reason and waited_ns as `ptserver goroutines` has them. recent: in this interval (of blocked_ns, as much as
    the two last lists say of such a time); total: since the start.
    """

    goid: int
    state: str = ""
    reason: str = ""
    waited_ns: int | None = None
    at: str = ""
    site: str = ""
    tid: int = 0
    stack: int = -1
    recent: Use = Use()
    total: Use = Use()


class SiteUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The goroutines that one go statement made. live, ended: how many of them."""

    site: str
    live: int = 0
    ended: int = 0
    recent: Use = Use()
    total: Use = Use()


class GroupUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """Goroutines with the same state and stack. goids: the first ten; the waits as far as the runtime noted them."""

    count: int
    state: str
    reason: str = ""
    goids: tuple[int, ...] = ()
    shortest_ns: int | None = None
    longest_ns: int | None = None
    stack: int = -1


class CallUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The calls of one name in this interval."""

    name: str
    calls: int = 0
    errors: int = 0
    call_ns: int = 0


class Snapshot(msgspec.Struct, frozen=True, tag_field="type", tag="snapshot", omit_defaults=True):
    """One interval.

    monotonic_ns: its end; interval_ns: its length. title: what program. goroutines: how many there are, states: by
    state or reason to wait. listed_ns_ago: how long before the end the list of them was complete, which states,
    groups and the goroutines' states are of. threads: of the process; cores: of the machine. calls: by name; lost: so
    many calls were made that nobody could take. recent: of the whole program, and total since the beginning.
    stopped_ns: the longest time that the program was stopped, stops: how often, in this interval. top: the goroutines
    that used most, groups: the largest, sites: those that used most; more of each may have been left out.
    notes: what cannot be shown, and why. ended: why this is the last snapshot.
    """

    title: str
    pid: int
    monotonic_ns: int
    interval_ns: int
    goroutines: int = 0
    states: dict[str, int] = {}
    listed_ns_ago: int = 0
    threads: int = 0
    cores: int = 1
    recent: Use = Use()
    total: Use = Use()
    lost: int = 0
    stopped_ns: int = 0
    stops: int = 0
    calls: tuple[CallUse, ...] = ()
    top: tuple[GoroutineUse, ...] = ()
    groups: tuple[GroupUse, ...] = ()
    sites: tuple[SiteUse, ...] = ()
    stacks: tuple[tuple[FrameRow, ...], ...] = ()
    notes: tuple[str, ...] = ()
    ended: str = ""


def encoder() -> Callable[[Snapshot], bytes]:
    """Return a function that makes a line of JSON of a snapshot."""
    encode = msgspec.json.Encoder().encode
    return lambda snapshot: encode(snapshot) + b"\n"


def decode(line: bytes) -> Snapshot:
    """Return the snapshot of a line.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return msgspec.json.decode(line, type=Snapshot)


def schema_text() -> str:
    """Return the JSON Schema of a line, as it is published in `docs/attach.schema.json`."""
    described = msgspec.json.schema(Snapshot)
    for definition in described["$defs"].values():
        definition["description"] = cleandoc(definition["description"])
    return json.dumps(described, indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
