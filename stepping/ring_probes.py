"""Probes: more places of a Go program that write to its ring. What the runtime asks of the kernel by itself, and what
becomes of goroutines.

    area       = offsets:u64[8] transitions[32] at 0x40, offset:u64 at 0x60, count:u32 at 0x80, patches at 0xc0,
                 code at 0x1000, thunks
    patch      = address:u64 size:u8 pad[7] original[16] patched[16] copy:u64 moved_to:u64              64 bytes

The area lies behind the ring's page; its routines are in `ring_probes_amd64.s`. A place is patched with a jump to its
thunk. The patches stand in the area, so that whoever finds it can take it back. `copy` is where the thunk has the
instructions that the jump replaced. For a raw syscall, `copy` is behind the thunk's own syscall instruction instead,
where a thread is while it waits in the kernel; from there it can be moved to `moved_to`, behind the same syscall in
the program's own code, and is then out of the area.

Records of probes are the ring's records. A raw syscall has its own number. Others have numbers from 0x200 on:

    0x200      args: g, old and new status, wait reason, channel, entry; result: the goroutine; goid, tid: by whom;
               data, of one that is about to wait: the first channels that it waits for, at most `MAX_CHANNELS`
    above      see `Moment`: the runtime entered a function

Source: in Go 1.21 to 1.27 runtime/proc.go (casgstatus), mgc.go, sys_linux_amd64.s, runtime2.go.
"""

import re
import struct
from collections.abc import Collection, Iterator
from enum import IntEnum
from typing import NamedTuple

from goabi.binary import GoBinary
from goabi.pclntab import Function
from stepping.ring_probes_code_amd64 import (
    AFTER_RAW,
    CODE,
    ENTRY,
    ENTRY_COPY,
    ENTRY_DATA,
    ENTRY_END,
    ENTRY_THUNK,
    RAW_AFTER,
    RAW_DATA,
    RAW_END,
    RAW_NUMBER,
    RAW_THUNK,
    STATUS,
)

#: Records with these numbers or higher are no syscalls.
FIRST_EVENT = 0x200

#: How many channels of a select are recorded.
MAX_CHANNELS = 32

AREA_BYTES = 0x3000
_TRANSITIONS_OFFSET, _LAST_OFFSET, _COUNT_OFFSET = 0x40, 0x60, 0x80
_PATCHES_OFFSET, _CODE_OFFSET = 0xC0, 0x1000
_OFFSETS = struct.Struct("<8Q")
_PATCH = struct.Struct("<QB7x16s16sQQ")
_MAX_PATCHES = (_CODE_OFFSET - _PATCHES_OFFSET) // _PATCH.size
_DATA = struct.Struct("<QQHxxIQ")
_JUMP_BYTES = 5
_SYSCALL_BYTES = 2

#: mov $nr, %eax; syscall, or mov $nr, %rax; syscall.
_RAW_CALL = re.compile(rb"(?:\xb8|\x48\xc7\xc0)(..)\0\0\x0f\x05", re.DOTALL)
#: push %rbp; mov %rsp, %rbp; sub $n, %rsp, behind a compiled function's check of the stack if it has one.
_PROLOGUE = re.compile(rb"\x55\x48\x89\xe5(?:\x48\x83\xec.|\x48\x81\xec....)", re.DOTALL)
_CHECK = re.compile(
    rb"(?:\x4c\x8d\x64\x24.|\x4c\x8d\xa4\x24....)?(?:\x49\x3b\x66[\x10\x18]|\x4d\x3b\x66[\x10\x18])(?:\x76.|\x0f\x86....)",
    re.DOTALL,
)

#: An offset from %fs, in the first instruction of runtime.morestack.
_MINUS_8 = b"\xf8\xff\xff\xff"

#: Functions whose syscalls do not return as others do, or change where g is: exit, clone, the return from a signal.
NOT_COVERED = frozenset(
    {
        "runtime.exit",
        "runtime.exitThread",
        "runtime.clone",
        "runtime.settls",
        "runtime.sigreturn__sigaction",
    }
)


class Moment(IntEnum):
    """What the runtime is about to do, by the function that does it."""

    STATUS = 0x200
    GC_START = 0x201
    GC_MARK_TERMINATION = 0x202
    GC_SWEEP = 0x203
    STOP_THE_WORLD = 0x204
    START_THE_WORLD = 0x205


#: The functions of the runtime that have probes.
FUNCTIONS = {
    Moment.STATUS: "runtime.casgstatus",
    Moment.GC_START: "runtime.gcResetMarkState",
    Moment.GC_MARK_TERMINATION: "runtime.gcMarkTermination",
    Moment.GC_SWEEP: "runtime.gcSweep",
    Moment.STOP_THE_WORLD: "runtime.stopTheWorldWithSema",
    Moment.START_THE_WORLD: "runtime.startTheWorldWithSema",
}


class Place(NamedTuple):
    """A place that is patched. address: link-time; original: the instructions there that the thunk executes instead.

    number: of its records; return_offset: of a raw syscall: how far above rsp its function's return address lies.
    """

    address: int
    original: bytes
    number: int
    return_offset: int = 0


class Probes(NamedTuple):
    """What is to be recorded. raw, entries: the places; transitions: the pairs of old and new status that are wanted.

    offsets: of curg and g0 in m; sched.pc, sched.bp, waitreason and waiting in g; c in sudog; startpc in g; waitlink
    in sudog. uncovered: the runtime's functions that make a syscall which is not recorded; wait_reasons: texts by
    number.
    """

    raw: tuple[Place, ...]
    entries: tuple[Place, ...]
    transitions: frozenset[tuple[int, int]]
    offsets: tuple[int, ...]
    uncovered: tuple[str, ...]
    wait_reasons: tuple[str, ...]


class Patch(NamedTuple):
    """A patched place in a process; see the grammar."""

    address: int
    original: bytes
    patched: bytes
    copy: int
    moved_to: int

    @property
    def moved_from(self) -> int:
        """Where a thread may be that can be moved to `moved_to`; 0 if nowhere."""
        return self.copy if self.moved_to else 0


def find_probes(
    binary: GoBinary,
    *,
    numbers: Collection[int],
    transitions: Collection[tuple[int, int]],
    moments: Collection[Moment],
) -> Probes:
    """Return the places in a program for the runtime's syscalls *numbers*, and for *transitions* and *moments*.

    A function that is not as it is known to be gets no probe, and is in `Probes.uncovered`.

    Raises:
        GoAbiError: the program's tables are damaged, or of an unknown version.
    """
    uncovered: list[str] = []
    raw = list(_find_raw(binary, numbers, uncovered)) if numbers else []
    if raw and not _keeps_g_where_expected(binary):
        uncovered.append("the runtime's own calls, because its g is not at %fs:-8")
        raw.clear()
    wanted = {*moments, Moment.STATUS} if transitions else set(moments)
    entries: list[Place] = []
    for moment in sorted(wanted):
        place = _find_entry(binary, moment)
        if place is None:
            uncovered.append(FUNCTIONS[moment])
        else:
            entries.append(place)
    g, m, sudog = binary.layouts["g"], binary.layouts["m"], binary.layouts["sudog"]
    channel = "c.maybeTraceablePtr.vu" if sudog.has("c.maybeTraceablePtr.vu") else "c"
    offsets = (
        *(m.offset("curg"), m.offset("g0"), g.offset("sched.pc"), g.offset("sched.bp")),
        *(g.offset("waitreason"), g.offset("waiting"), sudog.offset(channel), g.offset("startpc")),
        sudog.offset("waitlink"),
    )
    return Probes(
        tuple(raw),
        tuple(entries),
        frozenset(transitions),
        offsets,
        tuple(uncovered),
        binary.layouts.wait_reasons,
    )


def build_area(probes: Probes, address: int, bias: int) -> tuple[bytes, list[Patch]]:
    """Return the area for a process, where it is at *address*, and its patches. bias: added to link-time addresses.

    Raises:
        ValueError: there are more places than it can hold.
    """
    area = bytearray(AREA_BYTES)
    *first, last = probes.offsets
    _OFFSETS.pack_into(area, 0, *first)
    struct.pack_into("<Q", area, _LAST_OFFSET, last)
    at, bits = encode_transitions(probes.transitions)
    area[at : at + len(bits)] = bits
    area[_CODE_OFFSET : _CODE_OFFSET + RAW_THUNK] = CODE[:RAW_THUNK]
    at = _CODE_OFFSET + RAW_THUNK
    routines = address + _CODE_OFFSET
    patches: list[Patch] = []
    for place in (*probes.raw, *probes.entries):
        is_raw = place.number < FIRST_EVENT
        thunk = (
            _raw_thunk(place, routines, bias) if is_raw else _entry_thunk(place, address + at, routines, bias)
        )
        if at + len(thunk) > AREA_BYTES or len(patches) >= _MAX_PATCHES:
            raise ValueError(f"{len(probes.raw) + len(probes.entries)} probes do not fit")
        area[at : at + len(thunk)] = thunk
        source = place.address + bias
        jump = struct.pack("<Bi", 0xE9, address + at - (source + _JUMP_BYTES))
        copy = address + at + (RAW_AFTER - RAW_THUNK if is_raw else ENTRY_COPY - ENTRY_THUNK)
        moved_to = source + len(place.original) + _SYSCALL_BYTES if is_raw else 0
        patch = Patch(source, place.original, jump.ljust(len(place.original), b"\x90"), copy, moved_to)
        fields = (source, len(place.original), place.original, patch.patched, copy, moved_to)
        _PATCH.pack_into(area, _PATCHES_OFFSET + len(patches) * _PATCH.size, *fields)
        patches.append(patch)
        at = -(-(at + len(thunk)) // 16) * 16
    struct.pack_into("<I", area, _COUNT_OFFSET, len(patches))
    return bytes(area), patches


def encode_transitions(transitions: Collection[tuple[int, int]]) -> tuple[int, bytes]:
    """Return where in an area the changes of status that are recorded stand, and how."""
    bits = sum(1 << (old * 16 + new) for old, new in transitions)
    return _TRANSITIONS_OFFSET, bits.to_bytes(32, "little")


def decode_patches(area: bytes) -> list[Patch]:
    """Return the patches that an area holds."""
    (count,) = struct.unpack_from("<I", area, _COUNT_OFFSET)
    patches: list[Patch] = []
    for index in range(min(count, _MAX_PATCHES)):
        address, size, original, patched, *rest = _PATCH.unpack_from(
            area, _PATCHES_OFFSET + index * _PATCH.size
        )
        patches.append(Patch(address, original[:size], patched[:size], *rest))
    return patches


def _find_raw(binary: GoBinary, numbers: Collection[int], uncovered: list[str]) -> Iterator[Place]:
    for function in binary.functions.iter_functions():
        if not function.name.startswith("runtime."):
            continue
        code = binary.elf.read(function.entry, function.end - function.entry)
        if not _RAW_CALL.search(code) or not _is_assembly(binary, function):
            continue
        for match in _RAW_CALL.finditer(code):
            number = int.from_bytes(match[1], "little")
            if number not in numbers:
                continue
            place = function.entry + match.start()
            depth = binary.functions.sp_delta(function, place)
            if function.name in NOT_COVERED or depth is None:
                uncovered.append(function.name)
            else:
                yield Place(place, match[0][:-2], number, depth)


def _keeps_g_where_expected(binary: GoBinary) -> bool:
    """Whether each thread's g is at %fs:-8: C code with thread-local variables of its own may have moved it."""
    function = binary.functions.find_function_by_name("runtime.morestack")
    # mov %fs:-8, %r64; or mov $-8, %rcx; mov %fs:(%rcx), %r64
    return function is not None and _MINUS_8 in binary.elf.read(function.entry, 16)


def _is_assembly(binary: GoBinary, function: Function) -> bool:
    return binary.functions.file_line(function, function.entry)[0].endswith("/sys_linux_amd64.s")


def _find_entry(binary: GoBinary, moment: Moment) -> Place | None:
    function = binary.functions.find_function_by_name(FUNCTIONS[moment])
    if function is None:
        return None
    code = binary.elf.read(function.entry, min(64, function.end - function.entry))
    check = _CHECK.match(code)
    prologue = _PROLOGUE.match(code, check.end() if check else 0)
    return Place(function.entry + prologue.start(), prologue[0], moment) if prologue else None


def _raw_thunk(place: Place, routines: int, bias: int) -> bytes:
    made = bytearray(CODE[RAW_THUNK:RAW_END])
    struct.pack_into("<I", made, RAW_NUMBER - RAW_THUNK - 4, place.number)
    after = place.address + bias + len(place.original) + _SYSCALL_BYTES
    data = _DATA.pack(after, routines + AFTER_RAW, place.number, place.return_offset, after)
    made[RAW_DATA - RAW_THUNK :] = data
    return bytes(made)


def _entry_thunk(place: Place, thunk: int, routines: int, bias: int) -> bytes:
    made = bytearray(CODE[ENTRY_THUNK:ENTRY_END])
    copy = ENTRY_COPY - ENTRY_THUNK
    made[copy : copy + len(place.original)] = place.original
    routine = routines + (STATUS if place.number == Moment.STATUS else ENTRY)
    after = place.address + bias + len(place.original)
    made[ENTRY_DATA - ENTRY_THUNK :] = _DATA.pack(thunk + copy, routine, place.number, 0, after)
    return bytes(made)
