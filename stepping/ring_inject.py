"""Puts the ring into a running Go program, and takes it out again without a trace.

Installing: with all threads stopped, one of them is made to map a page for the routine within reach of a jump
from Syscall6, and shared memory (a memfd that this process maps too) for the records; then two jumps are
written. No thread can be in the middle of what they replace, but for one address, from which it is set back.

Removing: the bytes are put back first, which any thread survives wherever it is; then the page is unmapped as
soon as no thread executes in it, nor will return to it from a signal handler. For the latter, the signal stacks
are searched for addresses within the page: the frame of an interrupted routine holds one.

If this process dies, the program goes on, counting calls as lost once the ring is full. Whoever attaches next
finds the page by its magic and removes it. Nothing else is left: no descriptor, no thread, no trace on disk.

Source: ring_layout.py, ring_amd64.s; memfd_create(2), mmap(2).
"""

import contextlib
import dataclasses
import mmap
import os
import re
import struct
import time
from collections.abc import Iterable
from typing import NamedTuple

from stepping import direct_calls
from stepping.errors import MemoryFaultError, PtraceRefusedError, SteppingError, TraceeGoneError
from stepping.first_in_line import first_in_line
from stepping.maps import read_maps
from stepping.ptrace_refusal import explain_refusal
from stepping.remote_syscall import RemoteSyscallError, RemoteSyscalls, can_call, remote_syscall
from stepping.ring_code_amd64 import AFTER, BEFORE, CODE
from stepping.ring_copies import descriptors, read_errnos_mask
from stepping.ring_layout import (
    CODE_OFFSET,
    LIMIT_OFFSET,
    PAGE_BYTES,
    RECORD_BYTES,
    RECORDS_OFFSET,
    Parameters,
    decode_parameters,
    encode_page,
)
from stepping.ring_probes import AREA_BYTES, Patch, Probes, build_area, decode_patches
from stepping.ring_site import AFTER_BYTES, NoRingError, RingSite, read_entry
from stepping.syscall6 import AFTER_OFFSET, SIGNATURE
from stepping.syscalls.model import Syscall
from stepping.tracee import Tracee
from stepping.tracee_group import TraceeGroup
from stepping.tracee_memory import TraceeMemory

#: Records kept for a reader that is late; 16 MiB.
DEFAULT_SLOTS = 1 << 15
#: How much of a buffer is copied. Names are copied whole, up to a record's room.
DEFAULT_BUFFER_BYTES = 64

_JUMP = 0xE9
_JUMP_BYTES = 5
_NOP = b"\x90"
# Beyond the heap that a C library might grow after the program's data, within reach of a 32-bit jump.
_DISTANCE = 1 << 30
_REACH = (1 << 31) - (1 << 24)
_REMOVE_TRIES = 200
_REMOVE_INTERVAL_S = 0.001
_STACK_SCAN_BYTES = 1 << 16
_SCRATCH_OFFSET = 0x800  # in the ring's first page, beyond its counters
_STACK_T = struct.Struct("<Qi4xQ")  # stack_t: ss_sp, ss_flags, ss_size
_U64 = struct.Struct("<Q")
_NAME = b"ptserver-ring\0"
_PROT_RW = mmap.PROT_READ | mmap.PROT_WRITE
_PROT_RX = mmap.PROT_READ | mmap.PROT_EXEC
_MAP_FIXED_NOREPLACE = 0x100000
_MFD_CLOEXEC = 1


class Installed(NamedTuple):
    """A ring in a program. fd: this process's descriptor of its memory, or -1; stopped_s: how long it stood."""

    pid: int
    site: RingSite
    page: int
    parameters: Parameters
    fd: int
    stopped_s: float


def install(
    pid: int,
    site: RingSite,
    rows: Iterable[Syscall],
    *,
    slots: int = DEFAULT_SLOTS,
    buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    group: TraceeGroup | None = None,
    probes: Probes | None = None,
    mapped: bool = True,
) -> Installed:
    """Install the ring for the calls *rows* in process *pid*, and let it go on untraced.

    slots: a power of two. group: its tracees if it is traced already; otherwise it is attached to.
    probes: what else is recorded. mapped: whether this process maps the ring, for which the program is made to create
    a memfd; otherwise no call is made that would concern descriptors, and it is only mapped if the kernel allows it.

    Raises:
        NoRingError: its code or memory do not allow it; it is unchanged.
        PtraceRefusedError: it may not be traced, or another live ptserver has its ring in it.
        TraceeGoneError: it is gone.
    """
    if slots < 2 or slots & (slots - 1):
        raise ValueError(f"{slots} slots are not a power of two")
    template = RingPage(site, list(rows), slots, buffer_bytes, probes)
    remove_leftovers(pid, group)
    if group is None:
        group = TraceeGroup.attach(pid)
    memory = _open_memory(pid)
    try:
        with first_in_line():
            started = time.monotonic()
            group.stop_all()
            page, parameters, fd = _install_stopped(pid, site, template, group, memory, mapped=mapped)
            group.detach_all()
            return Installed(pid, site, page, parameters, fd, time.monotonic() - started)
    finally:
        memory.close()
        with contextlib.suppress(SteppingError):
            group.detach_all()


def remove(pid: int, page: int, parameters: Parameters, group: TraceeGroup | None = None) -> bool:
    """Take the ring at *page* out of process *pid*.

    Returns false if a thread would not leave the page in time; its bytes are put back all the same, and the
    mappings remain until the next `remove_leftovers`. The process goes on, traced only if *group* was given.

    Raises:
        PtraceRefusedError, TraceeGoneError: it cannot be traced, or is gone.
    """
    attached = group or TraceeGroup.attach(pid)
    memory = _open_memory(pid)
    with first_in_line():
        try:
            for _ in range(_REMOVE_TRIES):
                attached.stop_all()
                if not _is_there(memory, page, parameters):
                    return True  # the process has executed another program
                _restore_code(memory, page, parameters)
                _move_out(attached, memory, page, parameters)
                if not any(_is_inside(tracee, memory, page, parameters) for tracee in attached):
                    with remote_syscall(_any_tracee(attached)) as sys:
                        sys.call("munmap", parameters.ring, parameters.ring_bytes)
                        sys.call("munmap", page, parameters.mapped_bytes)
                    return True
                attached.resume_all()
                time.sleep(_REMOVE_INTERVAL_S)
            return False
        finally:
            memory.close()
            if group is None:
                with contextlib.suppress(TraceeGoneError):
                    attached.detach_all()


def find_pages(pid: int) -> list[tuple[int, Parameters]]:
    """Return the rings that are in process *pid*: address of the page, and its parameters.

    Raises:
        TraceeGoneError: it is gone.
    """
    found = []
    memory = _open_memory(pid)
    try:
        for vma in read_maps(pid):
            if (
                vma.perms != "r-xp"
                or vma.size_bytes not in (PAGE_BYTES, PAGE_BYTES + AREA_BYTES)
                or vma.inode
            ):
                continue
            with contextlib.suppress(MemoryFaultError):
                parameters = decode_parameters(memory.read(vma.start, CODE_OFFSET))
                if parameters is not None and parameters.mapped_bytes == vma.size_bytes:
                    found.append((vma.start, parameters))
    finally:
        memory.close()
    return found


def remove_leftovers(pid: int, group: TraceeGroup | None = None) -> int:
    """Remove the rings that dead ptservers have left in process *pid*; return how many there were.

    Raises:
        PtraceRefusedError: a ring belongs to a ptserver that lives.
    """
    pages = find_pages(pid)
    for page, parameters in pages:
        owner = parameters.tracer_pid
        if owner != os.getpid() and process_start(owner) == parameters.tracer_start:
            raise PtraceRefusedError(pid, f"ptserver process {owner} has its ring in it; end that first")
        remove(pid, page, parameters, group)
    return len(pages)


def process_start(pid: int) -> int:
    """Return when process *pid* started, in clock ticks since boot; -1 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return -1


class RingPage:
    """The routine's page, made before the program is stopped, as far as that can be: its two addresses are missing.

    ring_bytes, mapped_bytes: how much is to be mapped for the records, and for the page with the probes.
    """

    def __init__(
        self, site: RingSite, rows: list[Syscall], slots: int, buffer_bytes: int, probes: Probes | None
    ) -> None:
        self._probes = probes
        self._bias = site.load_bias
        self.ring_bytes = RECORDS_OFFSET + slots * RECORD_BYTES
        self.slots = slots
        self._parameters = Parameters(
            cookie=int.from_bytes(os.urandom(8), "little"),
            ring=0,
            resume_call=site.call,
            resume_after=site.after + AFTER_BYTES,
            goid_offset=site.goid_offset,
            m_offset=site.m_offset,
            index_mask=slots - 1,
            buffer_limit=buffer_bytes,
            read_errnos=read_errnos_mask(),
            entry=site.entry,
            entry_bytes=SIGNATURE[:8],
            after=site.after,
            after_bytes=SIGNATURE[AFTER_OFFSET:].ljust(8, b"\0"),
            tracer_pid=os.getpid(),
            tracer_start=process_start(os.getpid()),
            ring_bytes=self.ring_bytes,
            procid_offset=site.procid_offset,
            probe_bytes=AREA_BYTES if probes is not None else 0,
        )
        numbers = {int(row.numbers["amd64"]) for row in rows if "amd64" in row.numbers}
        self._page = encode_page(self._parameters, numbers, descriptors(rows, "amd64"), CODE)

    @property
    def mapped_bytes(self) -> int:
        """How much is to be mapped for the page and the probes."""
        return self._parameters.mapped_bytes

    def fill(self, ring: int, page: int) -> tuple[Parameters, bytes]:
        """Return the parameters, and the page with the probes, for a ring and a page at those addresses."""
        parameters = dataclasses.replace(self._parameters, ring=ring)
        head = parameters.encode()
        content = head + self._page[len(head) :]
        if self._probes is not None:
            content += build_area(self._probes, page + PAGE_BYTES, self._bias)[0]
        return parameters, content


def _install_stopped(
    pid: int,
    site: RingSite,
    template: RingPage,
    group: TraceeGroup,
    memory: TraceeMemory,
    *,
    mapped: bool,
) -> tuple[int, Parameters, int]:
    try:
        direct_calls.remove(memory, site.entry)
        if read_entry(memory, site) != SIGNATURE:
            raise NoRingError("its Syscall6 has been changed by another tool")
    except MemoryFaultError as error:
        raise NoRingError("its code cannot be read") from error
    gap = read_maps(pid).find_gap(template.mapped_bytes, site.entry + _DISTANCE, _REACH - _DISTANCE)
    if gap is None:
        raise NoRingError("no free memory is within reach of its code")
    try:
        with remote_syscall(_any_tracee(group), site.call) as sys, contextlib.ExitStack() as undo:
            page, ring, fd = _map(sys, pid, gap, template, memory, undo, mapped=mapped)
            parameters, content = template.fill(ring, page)
            memory.write(ring + LIMIT_OFFSET, struct.pack("<Q", template.slots))
            memory.write(page, content)
            sys.call("mprotect", page, template.mapped_bytes, _PROT_RX)
            undo.callback(_restore_code, memory, page, parameters)
            _patch(memory, page, parameters, group)
            undo.pop_all()
    except (RemoteSyscallError, MemoryFaultError, OSError) as error:
        raise NoRingError(str(error)) from error
    return page, parameters, fd


def _map(
    sys: RemoteSyscalls,
    pid: int,
    gap: int,
    template: RingPage,
    memory: TraceeMemory,
    undo: contextlib.ExitStack,
    *,
    mapped: bool,
) -> tuple[int, int, int]:
    """Map the page and the ring; return their addresses and this process's descriptor of the ring, -1 for none."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
    page = sys.call("mmap", gap, template.mapped_bytes, _PROT_RW, flags, -1, 0)
    undo.callback(_try_unmap, sys, page, template.mapped_bytes)
    if not mapped:
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        ring = sys.call("mmap", 0, template.ring_bytes, _PROT_RW, flags, -1, 0)
        undo.callback(_try_unmap, sys, ring, template.ring_bytes)
        return page, ring, _open_mapping(pid, ring, template.ring_bytes)
    memory.write(page, _NAME)
    remote_fd = sys.call("memfd_create", page, _MFD_CLOEXEC)
    try:
        fd = os.open(f"/proc/{pid}/fd/{remote_fd}", os.O_RDWR | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        os.ftruncate(fd, template.ring_bytes)
        ring = sys.call("mmap", 0, template.ring_bytes, _PROT_RW, mmap.MAP_SHARED, remote_fd, 0)
        undo.callback(_try_unmap, sys, ring, template.ring_bytes)
    finally:
        sys.call("close", remote_fd)
    return page, ring, fd


def _open_mapping(pid: int, start: int, size_bytes: int) -> int:
    """Return a descriptor of the memory that is mapped there, -1 if the kernel gives none (it does to root)."""
    try:
        return os.open(f"/proc/{pid}/map_files/{start:x}-{start + size_bytes:x}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1


def _try_unmap(sys: RemoteSyscalls, address: int, size: int) -> None:
    with contextlib.suppress(SteppingError):
        sys.call("munmap", address, size)


def _patch(memory: TraceeMemory, page: int, parameters: Parameters, group: TraceeGroup) -> None:
    entry_patch, after_patch = _patches(page, parameters)
    for tracee in group:
        registers = tracee.read_registers()
        if registers.pc == parameters.entry + 3:
            # Between the first two moves, in the middle of the jump to be. The first one can be done again.
            registers.pc = parameters.entry
            tracee.write_registers(registers)
    for patch in _probe_patches(memory, page, parameters):
        if memory.read(patch.address, len(patch.original)) != patch.original:
            raise NoRingError(f"its code at {patch.address:#x} has been changed by another tool")
        _move_into_copy(group, patch)
        memory.write(patch.address, patch.patched)
    memory.write(parameters.after, after_patch)
    memory.write(parameters.entry, entry_patch)


def _probe_patches(memory: TraceeMemory, page: int, parameters: Parameters) -> list[Patch]:
    if not parameters.probe_bytes:
        return []
    return decode_patches(memory.read(page + PAGE_BYTES, parameters.probe_bytes))


def _move_into_copy(group: TraceeGroup, patch: Patch) -> None:
    """Let threads that stand in the middle of what is replaced go on in the copy of it."""
    for tracee in group:
        registers = tracee.read_registers()
        done = registers.pc - patch.address
        if 0 < done < len(patch.original) and not patch.moved_to:
            registers.pc = patch.copy + done
            tracee.write_registers(registers)


def _move_out(group: TraceeGroup, memory: TraceeMemory, page: int, parameters: Parameters) -> None:
    """Let threads that wait in the kernel for a call made in a thunk come back to the program's own code.

    The kernel restarts an interrupted call by going back over the syscall instruction before pc, and there is the
    same one before both places.
    """
    moves = {
        patch.moved_from: patch.moved_to
        for patch in _probe_patches(memory, page, parameters)
        if patch.moved_from
    }
    for tracee in group:
        with contextlib.suppress(TraceeGoneError):
            registers = tracee.read_registers() if moves else None
            if registers is not None and registers.pc in moves:
                registers.pc = moves[registers.pc]
                tracee.write_registers(registers)


def _patches(page: int, parameters: Parameters) -> tuple[bytes, bytes]:
    """Return what stands at the two places while the ring is in."""

    def jump(source: int, target: int) -> bytes:
        return struct.pack("<Bi", _JUMP, target - (source + _JUMP_BYTES))

    code = page + CODE_OFFSET
    return jump(parameters.entry, code + BEFORE), jump(parameters.after, code + AFTER) + _NOP


def _restore_code(memory: TraceeMemory, page: int, parameters: Parameters) -> None:
    """Put back what the jumps to *page* replaced, if they are still there."""
    places = (
        (parameters.entry, parameters.entry_bytes),
        (parameters.after, parameters.after_bytes),
    )
    replaced = [
        (address, original[: len(patch)], patch)
        for (address, original), patch in zip(places, _patches(page, parameters), strict=True)
    ]
    with contextlib.suppress(MemoryFaultError):
        probes = _probe_patches(memory, page, parameters)
        replaced += ((probe.address, probe.original, probe.patched) for probe in probes)
    for address, original, patch in replaced:
        try:
            if memory.read(address, len(patch)) == patch:
                memory.write(address, original)
        except MemoryFaultError:
            continue  # another program runs there now


def _is_inside(tracee: Tracee, memory: TraceeMemory, page: int, parameters: Parameters) -> bool:
    """Whether the thread executes in the page, or will return to it from a signal handler."""
    try:
        registers = tracee.read_registers()
        if page <= registers.pc < page + parameters.mapped_bytes:
            return True
        # Nobody calls into the page, so its addresses get on a stack by signals only. (They may get elsewhere: a
        # profile has them on the heap.) Go's handlers run on the thread's signal stack, whose place the kernel
        # knows; asking it takes a call by the thread, so a quick look comes first.
        places = _find_addresses(memory, registers.sp, page, parameters.mapped_bytes)
        if not places:
            return False
        if not can_call(tracee):
            return True  # it stands at a clone or exec, where it cannot be asked: look again later
        low, high = _read_signal_stack(tracee, memory, parameters)
        return low <= registers.sp < high and any(low <= place < high for place in places)
    except TraceeGoneError:
        return False


def _is_there(memory: TraceeMemory, page: int, parameters: Parameters) -> bool:
    try:
        return decode_parameters(memory.read(page, CODE_OFFSET)) == parameters
    except MemoryFaultError:
        return False


def _find_addresses(memory: TraceeMemory, sp: int, page: int, size_bytes: int) -> list[int]:
    """Return where above the stack pointer words lie that are addresses in the page or its probes."""
    start = sp & -8
    size = _STACK_SCAN_BYTES
    while size >= 8:
        try:
            stack = memory.read(start, size)
        except MemoryFaultError:
            size //= 2
            continue
        ends = (struct.pack("<Q", one)[2:] for one in (page, page + size_bytes - 1))
        found = re.finditer(b"|".join(map(re.escape, dict.fromkeys(ends))), stack)
        offsets = (match.start() - 2 for match in found)
        return [
            start + offset
            for offset in offsets
            if offset >= 0
            and offset % 8 == 0
            and page <= _U64.unpack_from(stack, offset)[0] < page + size_bytes
        ]
    return []


def _read_signal_stack(tracee: Tracee, memory: TraceeMemory, parameters: Parameters) -> tuple[int, int]:
    """Return the bounds of the thread's alternate signal stack."""
    scratch = parameters.ring + _SCRATCH_OFFSET
    with remote_syscall(tracee, parameters.resume_call) as sys:
        sys.call("sigaltstack", 0, scratch)
    low, _, size = _STACK_T.unpack(memory.read(scratch, _STACK_T.size))
    return low, low + size


def _any_tracee(group: TraceeGroup) -> Tracee:
    """Return a tracee that can be made to execute syscalls."""
    for tracee in group:
        if can_call(tracee):
            return tracee
    raise SteppingError(f"no thread of process {group.pid} stands where it can be made to call the kernel")


def _open_memory(pid: int) -> TraceeMemory:
    try:
        return TraceeMemory(pid)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(pid) from error
    except PermissionError as error:
        raise PtraceRefusedError(pid, explain_refusal(pid)) from error
