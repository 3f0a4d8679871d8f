"""Which calls of a program a trace is of, as each source of events needs to know it."""

import os
from collections.abc import Collection, Iterable, Sequence

from ptserver.tracelog.go_events import RuntimeWanted
from stepping.registers import NATIVE
from stepping.ring_batch import RingBatch
from stepping.syscalls.model import OnlyIf, Syscall
from stepping.syscalls.table import SYSCALLS


class Wanted:
    """The calls that are traced. conditions: by name, what must hold for a call to be one (resources only)."""

    def __init__(self, names: Collection[str] | None, runtime: RuntimeWanted) -> None:
        self.runtime = runtime
        self.arch = arch = NATIVE[os.uname().machine].arch
        table: Iterable[Syscall] = (row for row in SYSCALLS.values() if arch in row.numbers)
        self.conditions: dict[str, OnlyIf] = {}
        if names is not None:
            self.rows = [row for row in table if row.name in names]
            return
        self.rows = [row for row in table if row.klass.is_resource or row.only_if is not None]
        self.conditions = {row.name: row.only_if for row in self.rows if row.only_if is not None}

    def by_stops(self) -> list[Syscall]:
        """Return the calls that are traced by stops, which cannot tell the runtime's own from others."""
        known = {row.name for row in self.rows}
        return [*self.rows, *(SYSCALLS[name] for name in sorted(self.runtime.calls - known))]

    def includes(self, name: str, args: Sequence[int]) -> bool:
        """Whether a call of one of the rows is wanted with these arguments."""
        only = self.conditions.get(name)
        return only is None or args[only.arg] & only.mask == only.value

    def select(self, batch: RingBatch) -> RingBatch:
        """Return the calls of a batch that are wanted."""
        names = self.conditions.keys()
        unwanted = {
            index
            for group in batch.groups()
            if group.row.name in names
            for position, index in enumerate(group.indexes)
            if not self.includes(group.row.name, group.call(position)[0])
        }
        return (
            batch.select([index for index in range(batch.size) if index not in unwanted])
            if unwanted
            else batch
        )
