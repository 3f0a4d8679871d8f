"""Takes an ELF core of a running process, which stops only while its memory is copied.

What is in the core: all private memory that was ever touched, shared memory without a file, the pages of mapped files
that the process changed, and the first page of each file (its build id); not the unchanged rest of files, which
debuggers take from the files themselves. Pages never touched are holes in the file: they read as zeros, and take no
room on disk, nor does looking for them touch them (/proc/PID/pagemap; SEEK_DATA for shared memory).

While it is stopped, `BUFFER_BYTES` are copied to this process's memory and written later; what is more is written at
once, so that no more memory is needed for a large process. Any thread may dump; it traces until the end.

Source: proc_pid_pagemap(5), proc_pid_map_files(5), core(5); Documentation/admin-guide/mm/pagemap.rst.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ptserver.errors import PtServerError
from ptserver.inspection.core_format import (
    MAX_SEGMENTS,
    ProcessState,
    Segment,
    ThreadState,
    encode_headers,
    encode_notes,
    place_segments,
)
from ptserver.inspection.find_process import InspectError, find_process
from ptserver.inspection.proc_status import thread_numbers
from ptserver.inspection.process_stop import stopped
from stepping import ptrace_api
from stepping.errors import PtraceRefusedError, SteppingError, TraceeGoneError
from stepping.maps import PAGE_BYTES, Vma, read_maps
from stepping.ptrace_api import RegisterSet
from stepping.ptrace_refusal import explain_refusal
from stepping.registers import NATIVE
from stepping.tracee import Tracee
from stepping.tracee_group import TraceeGroup

#: How much is copied to be written when the process has been let go.
BUFFER_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20
_XSTATE_BYTES = 1 << 14

_PAGEMAP_ENTRY_BYTES = 8
_PAGEMAP_PIECE_PAGES = 1 << 16
# The highest byte of an entry: present, swapped, and a page of a file or of shared memory.
_PRESENT, _SWAPPED, _OF_FILE = 0x80, 0x40, 0x20
_TOUCHED = bytes(bool(byte & (_PRESENT | _SWAPPED)) for byte in range(256))
_CHANGED = bytes(bool(byte & (_PRESENT | _SWAPPED)) and not byte & _OF_FILE for byte in range(256))

#: Mappings of the kernel's that cannot be read, or mean nothing in a core.
_UNREADABLE = ("[vvar", "[vsyscall]")
_DELETED = " (deleted)"

Range = tuple[int, int]


class DumpError(PtServerError):
    """The core cannot be written, or the process is of a kind that cores cannot describe."""

    exit_status = 74


@dataclass(frozen=True, slots=True)
class Dumped:
    """What came of a dump. stop_s: how long the process was stopped; file_bytes: the core's size, holes included."""

    pid: int
    name: str
    threads: int
    memory_bytes: int
    file_bytes: int
    stop_s: float


def dump_process(pid: int, path: str) -> Dumped:
    """Write a core of process *pid* to *path*, which only its owner may read and which appears only when it is whole.

    Raises:
        InspectError: there is no such process.
        DumpError: the file cannot be written.
        PtraceRefusedError, TraceeGoneError: it cannot be traced, or has exited.
    """
    found = find_process(pid)
    unfinished = f"{path}.unfinished"
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DumpError(f"cannot write a core to {path}: {error.strerror}") from error
    try:
        with contextlib.closing(_Process(found.pid)) as process:
            dumped = _dump(process, found.name, _Output(fd))
        os.rename(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        if isinstance(error, TraceeGoneError):
            raise InspectError(f"{found} exited while it was dumped") from error
        raise
    finally:
        os.close(fd)
    return dumped


def _dump(process: "_Process", name: str, output: "_Output") -> Dumped:
    with stopped(process.pid) as stop:
        now_ns = time.monotonic_ns()
        # As the kernel does, name threads as the program knows them, should it be in a container.
        numbers = {tid: own for own, tid in thread_numbers(process.pid).items()}
        threads = _read_threads(stop.group, numbers)
        vmas = [vma for vma in read_maps(process.pid) if not vma.path.startswith(_UNREADABLE)]
        state = _read_process(process.pid, vmas, now_ns)
        notes = encode_notes(replace(state, pid=numbers.get(state.pid, state.pid)), threads)
        parts = [part for vma in vmas for part in process.iter_parts(vma)]
        if len(parts) > MAX_SEGMENTS:
            raise DumpError(f"process {process.pid} has {len(vmas)} mappings, more than a core can list")
        segments = [segment for segment, _ in parts]
        offsets = place_segments(segments, len(notes))
        total = 0
        for (segment, ranges), offset in zip(parts, offsets, strict=False):
            for at, data in process.iter_data(ranges):
                output.put(offset + at - segment.start, data)
                total += len(data)
    output.put(0, encode_headers(NATIVE[os.uname().machine].arch, segments, offsets, notes))
    output.finish(offsets[-1])
    return Dumped(process.pid, name, len(threads), total, offsets[-1], stop.seconds)


class _Output:
    """The core's file. The first bytes that are put wait for `finish`, for disks are slow."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending: list[tuple[int, bytes]] = []
        self._room = BUFFER_BYTES

    def put(self, offset: int, data: bytes) -> None:
        """Take bytes for an offset; writes them at once when many wait already."""
        if len(data) <= self._room:
            self._room -= len(data)
            self._pending.append((offset, data))
        else:
            self._write(offset, data)

    def finish(self, size: int) -> None:
        """Write what waits, and make the file *size* bytes long."""
        for offset, data in self._pending:
            self._write(offset, data)
        self._pending.clear()
        with _explained():
            os.ftruncate(self._fd, size)

    def _write(self, offset: int, data: bytes) -> None:
        rest = memoryview(data)
        with _explained():
            while rest:
                written = os.pwrite(self._fd, rest, offset)
                offset, rest = offset + written, rest[written:]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DumpError(f"cannot write the core: {error.strerror}") from error


class _Process:
    """The memory of a stopped process, and which parts of it are worth keeping."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        with contextlib.ExitStack() as stack:
            try:
                self._memory = stack.enter_context(open(f"/proc/{pid}/mem", "rb", buffering=0))
                self._pagemap = stack.enter_context(open(f"/proc/{pid}/pagemap", "rb", buffering=0))
            except PermissionError as error:
                raise PtraceRefusedError(pid, explain_refusal(pid)) from error
            except (FileNotFoundError, ProcessLookupError) as error:
                raise TraceeGoneError(pid) from error
            self._files = stack.pop_all()

    def close(self) -> None:
        """Give up the descriptors."""
        self._files.close()

    def iter_parts(self, vma: Vma) -> Iterator[tuple[Segment, list[Range]]]:
        """Yield the segments that a mapping becomes, in order, each with the ranges in it that are to be read."""
        if vma.perms.startswith("---"):
            return  # reserved, and holds nothing
        named = vma.path.startswith("/")
        deleted = vma.path.endswith(_DELETED) or vma.path.startswith(("/dev/zero", "/memfd:", "/SYSV"))
        if named and vma.path.startswith("/dev/") and not deleted and not vma.path.startswith("/dev/shm/"):
            yield _segment(vma, vma.start, vma.end, kept=False), []  # a device's memory may mind being read
        elif vma.is_shared:
            kept = deleted or not named
            yield _segment(vma, vma.start, vma.end, kept=kept), self._shared_data(vma) if kept else []
        elif not named:
            yield _segment(vma, vma.start, vma.end, kept=True), self._pages(vma, _TOUCHED)
        elif deleted or vma.perms[1] == "w":
            yield _segment(vma, vma.start, vma.end, kept=True), [(vma.start, vma.end)]
        else:
            yield from self._parts_of_file(vma)

    def iter_data(self, ranges: list[Range]) -> Iterator[tuple[int, bytes]]:
        """Yield the (address, bytes) of what lies in *ranges*; pages that cannot be read are left out."""
        fd = self._memory.fileno()
        for start, end in ranges:
            while start < end:
                try:
                    data = os.pread(fd, min(_PIECE_BYTES, end - start), start)
                except OSError:
                    data = b""  # behind the end of a file, or the kernel's own
                if data:
                    yield start, data
                start += len(data) or PAGE_BYTES

    def _parts_of_file(self, vma: Vma) -> Iterator[tuple[Segment, list[Range]]]:
        """Divide the mapping of a file that is not written: its changed pages and its first are kept."""
        kept = self._pages(vma, _CHANGED)
        if vma.offset == 0 and (not kept or kept[0][0] > vma.start):
            kept.insert(0, (vma.start, vma.start + PAGE_BYTES))
        position = vma.start
        for start, end in kept:
            if position < start:
                yield _segment(vma, position, start, kept=False), []
            yield _segment(vma, start, end, kept=True), [(start, end)]
            position = end
        if position < vma.end:
            yield _segment(vma, position, vma.end, kept=False), []

    def _pages(self, vma: Vma, wanted: bytes) -> list[Range]:
        """Return the runs of pages whose entries in pagemap *wanted*, a table by their highest byte, has 1 for."""
        fd = self._pagemap.fileno()
        runs: list[Range] = []
        for start in range(vma.start, vma.end, _PAGEMAP_PIECE_PAGES * PAGE_BYTES):
            count = min(_PAGEMAP_PIECE_PAGES, (vma.end - start) // PAGE_BYTES)
            offset = start // PAGE_BYTES * _PAGEMAP_ENTRY_BYTES
            marks = os.pread(fd, count * _PAGEMAP_ENTRY_BYTES, offset)[7::8].translate(wanted)
            at = marks.find(1)
            while at >= 0:
                end = marks.find(0, at)
                end = len(marks) if end < 0 else end
                first, last = start + at * PAGE_BYTES, start + end * PAGE_BYTES
                if runs and runs[-1][1] == first:
                    first = runs.pop()[0]
                runs.append((first, last))
                at = marks.find(1, end)
        return runs

    def _shared_data(self, vma: Vma) -> list[Range]:
        """Return what of shared memory has data; to read a hole would allocate it."""
        try:
            fd = os.open(f"/proc/{self.pid}/map_files/{vma.start:x}-{vma.end:x}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # without the capability for it, what this process has mapped of it
            return self._pages(vma, _TOUCHED)
        ranges: list[Range] = []
        position, end = vma.offset, vma.offset + vma.size_bytes
        try:
            while position < end:
                start = os.lseek(fd, position, os.SEEK_DATA)
                if start >= end:
                    break
                position = min(end, os.lseek(fd, start, os.SEEK_HOLE))
                ranges.append((vma.start + start - vma.offset, vma.start + position - vma.offset))
        except OSError as error:
            if error.errno != errno.ENXIO:  # there is no more data
                return self._pages(vma, _TOUCHED)
        finally:
            os.close(fd)
        return ranges


def _segment(vma: Vma, start: int, end: int, *, kept: bool) -> Segment:
    return Segment(start, end, vma.perms, kept)


def _read_threads(group: TraceeGroup, numbers: Mapping[int, int]) -> list[ThreadState]:
    """Return the registers of all threads, the first thread's first. numbers: theirs in their own namespace."""
    threads = []
    for tracee in sorted(group, key=lambda tracee: (tracee.tid != group.pid, tracee.tid)):
        with contextlib.suppress(TraceeGoneError):  # by SIGKILL or the like; the others follow
            threads.append(_read_thread(tracee, numbers.get(tracee.tid, tracee.tid)))
    return threads


def _read_thread(tracee: Tracee, number: int) -> ThreadState:
    general = tracee.read_registers().encode()
    floating = ptrace_api.getregset(tracee.tid, RegisterSet.FLOAT, _XSTATE_BYTES)
    xstate = b""
    if tracee.layout.arch == "amd64":
        with contextlib.suppress(SteppingError):  # a processor without XSAVE has none
            xstate = ptrace_api.getregset(tracee.tid, RegisterSet.X86_XSTATE, _XSTATE_BYTES)
    return ThreadState(number, general, floating, xstate)


def _read_process(pid: int, vmas: Sequence[Vma], now_ns: int) -> ProcessState:
    folder = Path(f"/proc/{pid}")
    try:
        head, _, tail = (folder / "stat").read_bytes().rpartition(b") ")
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text(errors="replace").splitlines()
        )
        arguments = (folder / "cmdline").read_bytes()
        auxv = (folder / "auxv").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(pid) from error
    state, ppid, pgrp, sid = tail.split()[:4]
    return ProcessState(
        pid=pid,
        ppid=int(ppid),
        pgrp=int(pgrp),
        sid=int(sid),
        uid=int(status["Uid"].split()[0]),
        gid=int(status["Gid"].split()[0]),
        state=state.decode(),
        name=head.partition(b"(")[2],
        arguments=arguments,
        auxv=auxv,
        files=[
            (vma.start, vma.end, vma.offset, vma.path.encode(errors="surrogateescape"))
            for vma in vmas
            if vma.path.startswith("/")
        ],
        monotonic_ns=now_ns,
    )
