"""What is changed in a Go program that is spread, in its memory and never on disk, so that its runtime fetches less.

Go's runtime is made for one memory: it looks after all processors 50,000 times a second, wakes a thread for all that
could run, and collects garbage from 4 MiB of heap on. Each of those visits records that other hosts write. Functions
are found by the program's own table of functions, so stripped programs have them too, and what is changed in them by
its pattern; where that is not found, the program runs correctly without the change.

    sysmon       the runtime's monitor looks 25 times a second (100 times in idle programs, natively). A processor
                 whose thread is long in a system call, or a goroutine that computes for long, is seen up to 40 ms
                 later. Where a round trip to a host takes more than 0.8 ms it looks after 50 of them, up to 100 ms.
    slices       a goroutine is interrupted when it has computed for 50 ms instead of 10; where a round trip takes
                 more than 0.5 ms for 100 of them, up to 200 ms: what it waits for counts as well, and whoever is next
                 must fetch the scheduler's records first.
    wakeups      a goroutine that is woken by another waits until that blocks or is interrupted, before an
                 idle processor is asked to take it. New goroutines are not concerned.
    collections  the first garbage collection is at 64 MiB of heap (and $GOGC) instead of 4.
    stacks       a goroutine's stack has 4 KiB at least instead of 2, a page of its own.

To give the runtime's records pages of their own (by larger types) has been tried and is not done; what was counted is
in docs/spread-speed.md.

Source: Go 1.21 to 1.27: runtime/proc.go (sysmon, ready, goschedImpl, newproc1, gfget), runtime/mgcpacer.go
(gcControllerState.init), runtime/stack.go (gcComputeStartingStackSize, shrinkstack).
"""

import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from goabi.binary import GoBinary
from goabi.errors import GoAbiError, MemoryFaultError
from ptserver.errors import PtServerError
from ptserver.inspection.process_memory import read_load_bias
from ptserver.spread.messages import Patch
from stepping.maps import PAGE_BYTES
from stepping.x86_instructions import (
    MAX_INSTRUCTION_BYTES,
    Instruction,
    NotAnInstructionError,
    decode_instruction,
)

_CALL, _MOVE_32, _SHIFT, _LOAD = 0xE8, 0xB8, 0xC1, 0x8B
_NOTHING_5 = b"\x0f\x1f\x44\x00\x00"
#: How long sysmon sleeps at first and at most, and in how much time a goroutine is interrupted, natively.
_SYSMON_US, _SYSMON_LAST_US, _SLICE_NS = 20, 10_000, 10_000_000
#: What these are at least, how many round trips to the farthest host, and what they are at most.
_SYSMON_LEAST_US, _SLICE_LEAST_NS = 40_000, 50_000_000
_SYSMON_ROUND_TRIPS, _SYSMON_MOST_US = 50, 100_000
_SLICE_ROUND_TRIPS, _SLICE_MOST_NS = 100, 200_000_000
_HEAP_SHIFT, _HEAP_SPREAD_SHIFT = 22, 26  # 4 MiB, 64 MiB
_SHIFT_LEFT = 4
_STACK, _STACK_SPREAD = struct.pack("<I", 2048), struct.pack("<I", PAGE_BYTES)


class AdaptationError(PtServerError):
    """There is no such adaptation."""

    exit_status = 64


class Adaptations(NamedTuple):
    """patches: what to change. missing: the names of the adaptations for which nothing was found."""

    patches: tuple[Patch, ...]
    missing: tuple[str, ...]


class Pace(NamedTuple):
    """How often the runtime looks at what other hosts have: sysmon's sleep, a goroutine's slice."""

    sysmon_us: int
    slice_ns: int

    @classmethod
    def of(cls, round_trip_ns: int) -> "Pace":
        """Return what pays if a round trip to the farthest host takes so long."""
        sysmon_us = min(_SYSMON_ROUND_TRIPS * round_trip_ns // 1000, _SYSMON_MOST_US)
        slice_ns = min(_SLICE_ROUND_TRIPS * round_trip_ns, _SLICE_MOST_NS)
        return cls(max(sysmon_us, _SYSMON_LEAST_US), max(slice_ns, _SLICE_LEAST_NS))


_Code = Iterator[tuple[int, Instruction]]


class _Functions:
    """The functions of a program, decoded."""

    def __init__(self, binary: GoBinary) -> None:
        self._binary = binary

    def entry(self, name: str) -> int | None:
        function = self._binary.functions.find_function_by_name(name)
        return function.entry if function is not None else None

    def word(self, address: int, size: int) -> int:
        """Return what the file has at an address, an unsigned number; 0 if it has nothing."""
        try:
            return int.from_bytes(self._binary.elf.read(address, size), "little")
        except MemoryFaultError:
            return 0

    def code(self, name: str) -> _Code:
        """Yield (address, instruction) of a function, as far as it can be decoded; nothing if there is none."""
        function = self._binary.functions.find_function_by_name(name)
        if function is None:
            return
        code = self._binary.elf.read(function.entry, function.end - function.entry)
        at = 0
        while at < len(code):
            try:
                instruction = decode_instruction(code[at : at + MAX_INSTRUCTION_BYTES])
            except NotAnInstructionError:
                return
            yield function.entry + at, instruction
            at += instruction.size


def _sysmon(functions: _Functions, pace: Pace) -> list[Patch]:
    first, last, ours = (struct.pack("<I", us) for us in (_SYSMON_US, _SYSMON_LAST_US, pace.sysmon_us))
    return [
        Patch(address, each.code, each.code[: -len(ours)] + ours)
        for address, each in functions.code("runtime.sysmon")
        if each.code.endswith(last)
        or (len(each.code) == 5 and each.code[0] & 0xF8 == _MOVE_32 and each.code.endswith(first))
    ]


def _slices(functions: _Functions, pace: Pace) -> list[Patch]:
    slice_ns, ours = struct.pack("<I", _SLICE_NS), struct.pack("<I", pace.slice_ns)
    return [
        Patch(address, each.code, each.code[: -len(ours)] + ours)
        for address, each in functions.code("runtime.retake")
        if each.code.endswith(slice_ns)
    ]


def _wakeups(functions: _Functions, _pace: Pace) -> list[Patch]:
    wakep = functions.entry("runtime.wakep")
    if not _calls(functions, "runtime.goschedImpl", wakep):
        return []  # nobody would be asked to take what waits
    return [
        Patch(address, each.code, _NOTHING_5) for address, each in _calls(functions, "runtime.ready", wakep)
    ]


def _collections(functions: _Functions, _pace: Pace) -> list[Patch]:
    return [
        Patch(address, each.code, each.code[:-1] + bytes([_HEAP_SPREAD_SHIFT]))
        for address, each in functions.code("runtime.(*gcControllerState).init")
        if each.opcode == _SHIFT
        and not each.map
        and each.extension == _SHIFT_LEFT
        and each.code[-1] == _HEAP_SHIFT
    ]


def _calls(functions: _Functions, caller: str, callee: int | None) -> list[tuple[int, Instruction]]:
    return [
        (address, each)
        for address, each in functions.code(caller)
        if callee is not None and _target(address, each) == callee
    ]


def _stacks(functions: _Functions, _pace: Pace) -> list[Patch]:
    malg = functions.entry("runtime.malg")
    new = [
        before
        for before, (address, each) in pairwise(functions.code("runtime.newproc1"))
        if before[1].code[1:] == _STACK and _target(address, each) == malg
    ]
    variables = {
        each.static_target(address)
        for address, each in functions.code("runtime.gfget")
        if each.opcode == _LOAD and not each.map and not each.wide
    }
    starting = [
        address
        for address in variables
        if address is not None and functions.word(address, len(_STACK)) == int.from_bytes(_STACK, "little")
    ]
    least = [
        (address, each)
        for name in ("runtime.gcComputeStartingStackSize", "runtime.shrinkstack")
        for address, each in functions.code(name)
        if each.code.endswith(_STACK)
    ]
    if len(new) != 1 or len(starting) != 1:
        return []
    return [
        Patch(starting[0], _STACK, _STACK_SPREAD),
        *(
            Patch(address, each.code, each.code[: -len(_STACK)] + _STACK_SPREAD)
            for address, each in (*new, *least)
        ),
    ]


def _target(address: int, instruction: Instruction) -> int | None:
    """Return where a call leads, if it is one that says so."""
    if instruction.code[0] != _CALL:
        return None
    return address + instruction.size + int(struct.unpack_from("<i", instruction.code, 1)[0])


#: By name, with how many places it concerns: another number is not the code that is known.
ADAPTATIONS: dict[str, tuple[Callable[[_Functions, Pace], list[Patch]], range]] = {
    "sysmon": (_sysmon, range(2, 5)),
    "slices": (_slices, range(1, 3)),
    "wakeups": (_wakeups, range(1, 2)),
    "collections": (_collections, range(1, 2)),
    "stacks": (_stacks, range(4, 7)),
}


def parse_names(text: str) -> tuple[str, ...]:
    """Return the adaptations that *text* names: "all", "none", or some, by commas.

    Raises:
        AdaptationError: there is one that does not exist.
    """
    if text in ("all", "none"):
        return tuple(ADAPTATIONS) if text == "all" else ()
    names = tuple(text.split(","))
    for name in names:
        if name not in ADAPTATIONS:
            raise AdaptationError(f"no adaptation {name!r}: there are {', '.join(ADAPTATIONS)}, all and none")
    return names


def find_adaptations(
    path: str, names: tuple[str, ...], round_trip_ns: int = 0, pid: int | None = None
) -> Adaptations:
    """Return what to change in the program *path* for the adaptations *names*.

    round_trip_ns: how long it takes to the farthest host and back. pid: of a process of the program, for the
    addresses that things have there; without one they are those in the file.
    """
    pace = Pace.of(round_trip_ns)
    patches: list[Patch] = []
    missing: list[str] = []
    try:
        with GoBinary.open(path, prefer_table=True) as binary:
            functions = _Functions(binary)
            bias = read_load_bias(binary, pid) if pid is not None else 0
            for name in names:
                find, places = ADAPTATIONS[name]
                found = find(functions, pace)
                if len(found) in places:
                    patches += (
                        Patch(patch.address + bias, patch.old, patch.new)
                        for patch in found
                        if patch.old != patch.new
                    )
                else:
                    missing.append(name)
    except (GoAbiError, OSError):
        return Adaptations((), names)
    return Adaptations(tuple(patches), tuple(missing))
