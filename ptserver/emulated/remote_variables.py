"""Makes variables of an emulated program remote: a plan of `ptserver.remote_memory.variables`, on a machine.

As natively, variables are moved to pages of their own where that is certain to be right, with what refers to them
in the code changed. Which store they live in is decided when the machine is there: a server's of this process, or the
one that was given.

Thread rules: those of the machine.
"""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from goabi.errors import GoAbiError
from ptserver.emulated.goids import EmulatedGoids
from ptserver.errors import PtServerError
from ptserver.remote_memory.hosting import open_binary, open_log
from ptserver.remote_memory.shared import SharedVariables
from ptserver.remote_memory.stores import ServedStore, VariableStore
from ptserver.remote_memory.trace import TracingStore
from ptserver.remote_memory.variables import Plan
from ptserver.server import RuntimeServer
from ptserver.servers.passthrough import PassThrough
from ptserver.session import Session
from stepping.emulation.address_space import PAGE_BYTES, PROT_READ, PROT_WRITE, AddressSpace
from stepping.emulation.elsewhere import Elsewhere
from stepping.emulation.machine import Machine
from stepping.emulation.threads import Thread
from stepping.remote_memory import RemoteVariable
from stepping.static_references_arm64 import moved_page

if TYPE_CHECKING:
    from stepping.static_references import Reference

#: Moved variables are that far behind the code, or somewhat further: in reach of displacements.
_DISTANCE, _REACH = 0x3000_0000, 0x2000_0000


class RemoteVariables:
    """What of the program at *path* is remote, by *plan*. trace: the file for a log of accesses, ``-`` for stderr.

    store: where the variables live; if None, the server of this process decides. stderr: its descriptor.
    """

    def __init__(
        self, path: str, plan: Plan, trace: str | None, store: VariableStore | None = None, *, stderr: int = 2
    ) -> None:
        self._path = path
        self._plan = plan
        self._trace = trace
        self._store = store
        self._stderr = stderr

    def make(self, machine: Machine, server: RuntimeServer | None, session: Session) -> None:
        """Make the variables remote, before the program of *machine* runs.

        Raises:
            PtServerError: the store does not take one, or there is no room.
        """
        store = self._store or ServedStore(server or PassThrough(), session, SharedVariables(is_shared=False))
        if self._trace is not None:
            store = TracingStore(store, open_log(self._trace, self._stderr), open_binary(self._path))
        plan = self._plan.biased(machine.load_bias)
        variables = [*plan.in_place, *_move(machine, plan)]
        for variable in variables:
            initial = bytes(machine.space.view[variable.address : variable.end])
            store.declare(variable.name, initial)
        machine.keep_elsewhere(Elsewhere(machine, variables, store, self._tells(machine, store)))

    def _tells(self, machine: Machine, store: VariableStore) -> Callable[[Thread, int], None]:
        bias = machine.load_bias
        try:
            goids = EmulatedGoids(self._path)
        except (GoAbiError, OSError):
            return lambda thread, pc: store.asked_by(thread.tid, 0, pc - bias)
        return lambda thread, pc: store.asked_by(thread.tid, goids.of(thread.context, machine), pc - bias)


def _move(machine: Machine, plan: Plan) -> list[RemoteVariable]:
    """Give the variables that can be moved pages of their own; return where they are."""
    space = machine.space
    first = [variable.address & -PAGE_BYTES for variable in plan.moved]
    pages = sorted(
        {
            page
            for start, variable in zip(first, plan.moved, strict=True)
            for page in range(start, variable.end, PAGE_BYTES)
        }
    )
    if not pages:
        return []
    area = _find_room(space, plan.entry, len(pages) * PAGE_BYTES)
    space.map(area, len(pages) * PAGE_BYTES, PROT_READ | PROT_WRITE)
    places = {page: area + index * PAGE_BYTES for index, page in enumerate(pages)}
    moved = []
    for variable, references in plan.moved.items():
        start = places[variable.address & -PAGE_BYTES] + variable.address % PAGE_BYTES
        end = start + variable.size
        space.view[start:end] = space.view[variable.address : variable.end]
        for reference in references:
            _redirect(machine, reference, start - variable.address)
        moved.append(RemoteVariable(start, variable.size, variable.name))
    return moved


def _redirect(machine: Machine, reference: "Reference", distance: int) -> None:
    """Let the instruction of *reference* lead *distance* bytes further."""
    view, place = machine.space.view, reference.place
    if machine.abi.arch == "arm64":
        (word,) = struct.unpack_from("<I", view, place)
        struct.pack_into("<I", view, place, moved_page(word, distance))
    else:
        (displacement,) = struct.unpack_from("<i", view, place)
        struct.pack_into("<i", view, place, displacement + distance)


def _find_room(space: AddressSpace, code_at: int, size: int) -> int:
    start = (code_at & -PAGE_BYTES) + _DISTANCE
    for address in range(start, start + _REACH, 1 << 20):
        if space.is_free(address, size):
            return address
    raise PtServerError("there is no room near the program's code for its remote variables")
