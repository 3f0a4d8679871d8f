"""Prepares a program, before its first instruction, for remote memory.

A page is inaccessible as a whole, and what lies beside a variable may be what Go's runtime touches all the time. So
variables are *moved* where that is certain to be right: to pages of their own, near the code, with every
reference in the code changed (`static_references`). The others' pages are made inaccessible where they are.

    area = moved page*, code page, operand page, buffers

`redirected_step` uses the two pages, `remote_calls` the buffers; a filter stops calls with remote buffers.

A moved variable keeps its offset within its page, hence its alignment.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stepping import ptrace_api
from stepping.errors import SteppingError
from stepping.maps import PAGE_BYTES, read_maps
from stepping.ptrace_api import FOLLOW_THREADS, Option
from stepping.redirected_step import SCRATCH_BYTES
from stepping.remote_calls import BUFFERS_BYTES
from stepping.remote_filter import Span, install_address_filter
from stepping.remote_memory import RemoteVariable
from stepping.remote_syscall import remote_syscall
from stepping.static_references import Reference
from stepping.tracee import Tracee
from stepping.tracee_memory import TraceeMemory

_NONE, _READ_WRITE, _READ_EXEC = 0, 3, 5
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_FIXED_NOREPLACE = 0x2, 0x20, 0x100000
_NO_FILE = (1 << 64) - 1
#: The area is that far behind the code: in reach of displacements, beyond where a small heap would grow.
_DISTANCE, _REACH = 0x3000_0000, 0x2000_0000


@dataclass(frozen=True, slots=True)
class Prepared:
    """variables: where the remote variables are now; scratch: for `RedirectedStep`; buffers: for `RemoteCalls`."""

    variables: list[RemoteVariable]
    scratch: int
    buffers: int


def prepare(
    tracee: Tracee,
    memory: TraceeMemory,
    moved: Mapping[RemoteVariable, Sequence[Reference]],
    in_place: Iterable[RemoteVariable],
    code_at: int,
) -> Prepared:
    """Make all variables inaccessible to the stopped *tracee*, which can be made to call the kernel.

    moved: those to move, with all that refers to them; in_place: the others; code_at: an address in the code.

    Raises:
        SteppingError: there is no room, or the kernel refuses.
    """
    pages = sorted({page for variable in moved for page in _pages(variable)})
    size = len(pages) * PAGE_BYTES + SCRATCH_BYTES + BUFFERS_BYTES
    area = read_maps(tracee.pid).find_gap(size, code_at + _DISTANCE, _REACH)
    if area is None:
        raise SteppingError("there is no room near the program's code for its remote variables")
    scratch = area + len(pages) * PAGE_BYTES
    buffers = scratch + SCRATCH_BYTES
    kept = list(in_place)
    stuck = sorted({page for variable in kept for page in _pages(variable)})
    ptrace_api.setoptions(tracee.tid, FOLLOW_THREADS | Option.SECCOMP | Option.EXITKILL)
    with remote_syscall(tracee) as sys:
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
        sys.call("mmap", area, size, _NONE, flags, _NO_FILE, 0)
        sys.call("mprotect", scratch, PAGE_BYTES, _READ_EXEC)
        sys.call("mprotect", scratch + PAGE_BYTES, PAGE_BYTES + BUFFERS_BYTES, _READ_WRITE)
        for page in stuck:
            sys.call("mprotect", page, PAGE_BYTES, _NONE)
        spans = [(area, scratch), *_joined(stuck)] if pages else _joined(stuck)
        install_address_filter(sys, memory, buffers, BUFFERS_BYTES, spans)
    places = {page: area + index * PAGE_BYTES for index, page in enumerate(pages)}
    variables = kept
    for variable, references in moved.items():
        start = places[variable.address & -PAGE_BYTES] + variable.address % PAGE_BYTES
        distance = start - variable.address
        memory.write(start, memory.read(variable.address, variable.size))
        for place, _ in references:
            (displacement,) = struct.unpack("<i", memory.read(place, 4))
            memory.write(place, struct.pack("<i", displacement + distance))
        variables.append(RemoteVariable(start, variable.size, variable.name))
    return Prepared(variables, scratch, buffers)


def _pages(variable: RemoteVariable) -> range:
    return range(variable.address & -PAGE_BYTES, variable.end, PAGE_BYTES)


def _joined(pages: Iterable[int]) -> list[Span]:
    """Return the spans that ascending *pages* make up."""
    spans: list[Span] = []
    for page in pages:
        if spans and spans[-1][1] == page:
            spans[-1] = (spans[-1][0], page + PAGE_BYTES)
        else:
            spans.append((page, page + PAGE_BYTES))
    return spans
