"""An instance: a process that executes a program, with all its writable memory on a memfd that we hold too.

The memfd has the size of the address space, and a page's place in it is its address. So whoever has the memfd reads
and writes the program's memory without touching the program, takes pages away (a hole) and puts them back, and a
userfaultfd reports who misses them. The first instance of a program has its image; a further one is blank: the
same code, no data, its first thread stopped for ever before its first instruction, there to make calls and threads
for us.

Memory is watched in few large regions, made once: a region costs nothing until it is touched. What the program maps
within a region needs no call to the kernel.

All methods are for the thread that traces. Source: memfd_create(2), personality(2), userfaultfd(2).
"""

import contextlib
import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from stepping import gadget
from stepping.errors import MemoryFaultError, SteppingError, TraceeGoneError
from stepping.gadget import GADGET, SCRATCH
from stepping.launch import Program
from stepping.maps import PAGE_BYTES, Vma, read_maps
from stepping.page_taker import PageTaker, neighbours
from stepping.ptrace_api import Option
from stepping.seccomp import Rule, Verdict, assemble
from stepping.syscalls import Arch
from stepping.tracee import Tracee
from stepping.tracee_launch import fork_tracee
from stepping.tracee_memory import TraceeMemory
from stepping.userfault import UserFault
from stepping.vdso import forget_vdso
from stepping.wait_status import Event

_ADDRESS_SPACE_BYTES = 1 << 47
#: How much of the first thread's stack is watched below what it begins with; Go's first thread needs little of it.
_STACK_BYTES = 1 << 20
_OPTIONS = Option.SYSGOOD | Option.CLONE | Option.FORK | Option.VFORK | Option.EXEC | Option.SECCOMP

_ADDR_NO_RANDOMIZE = 0x0040000
_PERSONALITY_QUERY = 0xFFFFFFFF
_NR_PIDFD_GETFD = 438
_AT_FDCWD = -100
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_POINTER_OFFSET = 8  # of seccomp_data.instruction_pointer
_PROT_READ_WRITE, _PROT_READ_EXECUTE = 3, 5
_PRIVATE_FIXED_NOREPLACE = 0x100022
_SHARED_FIXED_NORESERVE, _SHARED_FIXED_NOREPLACE_NORESERVE = 0x4011, 0x104001
_O_RDWR_CLOEXEC = os.O_RDWR | os.O_CLOEXEC
_O_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class Image(NamedTuple):
    """What a blank instance must have in common with the first. regions: [start, size) of its first memory."""

    regions: tuple[tuple[int, int], ...]


class Instance:
    """One process; see the module's text. faults: whoever waits for a page of it.

    main: its first thread, stopped. present: the pages (by number) that it has at the beginning.
    """

    def __init__(self, program: Program) -> None:
        """Start *program*, whose filter must let calls from `gadget.AFTER_SYSCALL` pass, up to its first instruction.

        Raises:
            ExecError, SeccompRefusedError, PtraceRefusedError: the kernel refuses.
        """
        self.main = _launch(program)
        self.pid = self.main.pid
        self.memory = TraceeMemory(self.pid)
        self.present: set[int] = set()
        self._memfd = os.memfd_create("instance", os.MFD_CLOEXEC)
        os.ftruncate(self._memfd, _ADDRESS_SPACE_BYTES)
        self._taker = PageTaker(self._memfd)
        gadget.install(self.main, self.memory)
        _call(self.main, "personality", _libc.personality(_PERSONALITY_QUERY))  # for what it executes
        forget_vdso(self.memory, self.main.read_registers().sp)
        self.faults = self._make_userfault()
        self._path = os.readlink(f"/proc/{self.pid}/exe")
        self._routines = range(0)
        self._code = [
            range(vma.start, vma.end)
            for vma in read_maps(self.pid)
            if vma.path == self._path and vma.perms[2] == "x"
        ]

    def is_own_code(self, address: int) -> bool:
        """Whether the program's own file has code at *address*, and not a library of it."""
        return any(address in code for code in self._code)

    def keep_image(self) -> Image:
        """Put the memory that the program begins with on the memfd; return what a blank instance needs."""
        regions: list[tuple[int, int]] = []
        for vma in self._writable():
            start, size = vma.start, vma.size_bytes
            data = _without_end(self.memory.read(start, size))
            os.pwrite(self._memfd, data, start)
            self.present.update(_pages_with_data(start, data))
            if vma.path == "[stack]":
                size += _STACK_BYTES
                start = vma.end - size
            if (
                regions and sum(regions[-1]) == start
            ):  # one mapping, so that pages can be given across the seam
                start, size = regions[-1][0], regions.pop()[1] + size
            regions.append((start, size))
        image = Image(tuple(regions))
        self._map_all(image)
        return image

    def be_blank(self, image: Image) -> None:
        """Have memory where *image* says, and nothing in it.

        Raises:
            SteppingError: this process has its memory elsewhere, so it does not execute the same file.
        """
        for vma in self._writable():
            inside = any(start <= vma.start < start + size for start, size in image.regions)
            if vma.path != "[stack]" and not inside:
                raise SteppingError(f"memory at {vma.start:#x} has no counterpart: it is another program")
        for vma in read_maps(self.pid):  # a dynamic linker, which may be another here
            if vma.path.startswith("/") and vma.path != self._path and vma.perms[1] != "w":
                _call(self.main, "munmap", vma.start, vma.size_bytes)
        self._map_all(image)

    def change_code(self, address: int, old: bytes, new: bytes) -> bool:
        """Have *new* where the program's code has *old*, in this process alone; return False if that is not there."""
        try:
            if self.memory.read(address, len(old)) != old:
                return False
            self.memory.write(address, new)
        except MemoryFaultError:
            return False
        return True

    def add_routines(self, address: int, code: bytes, memory: int, memory_bytes: int) -> int:
        """Have *code* of ours at *address*, and shared memory at *memory*, in this process alone, before it runs.

        Returns this process's descriptor of that memory.

        Raises:
            SteppingError: something is there already, or the process is gone.
        """
        fd = os.memfd_create("routines", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, memory_bytes)
            self._map_file(self.main, fd, memory, memory_bytes, _SHARED_FIXED_NOREPLACE_NORESERVE, 0)
            _call(self.main, "mmap", address, len(code), _PROT_READ_EXECUTE, _PRIVATE_FIXED_NOREPLACE, -1, 0)
            self.memory.write(address, code)
        except BaseException:
            os.close(fd)
            raise
        self._routines = range(address, address + len(code))
        return fd

    def is_in_routines(self, address: int) -> bool:
        """Whether it is in what `add_routines` put here, which works on memory of this process alone."""
        return address in self._routines

    def add_region(self, start: int, size: int, by: Tracee | None = None) -> None:
        """Watch [start, start + size), which must be free. by: the stopped thread that maps it, *main* by default.

        Raises:
            SteppingError: it is not, or the process is gone.
        """
        self._map(by or self.main, start, size, _SHARED_FIXED_NOREPLACE_NORESERVE)

    def read(self, address: int, size: int) -> bytes:
        """Return what the memfd has there; zeros where it has nothing."""
        return os.pread(self._memfd, size, address)

    def has(self, address: int) -> bool:
        """Whether the memfd has the page at *address*."""
        try:
            return os.lseek(self._memfd, address, os.SEEK_DATA) == address
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing more
                return False
            raise

    def iter_pages(self) -> Iterator[int]:
        """Yield the addresses of all pages that the memfd has."""
        end = 0
        while True:
            try:
                start = os.lseek(self._memfd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing more
                    return
                raise
            end = os.lseek(self._memfd, start, os.SEEK_HOLE)
            yield from range(start, end, PAGE_BYTES)

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Put *data* on the memfd."""
        os.pwrite(self._memfd, data, address)

    def drop(self, address: int, size: int = PAGE_BYTES) -> None:
        """Take whole pages away, so that the next touch is a fault."""
        self._taker.drop(address, size)

    def copy_pages(self, pages: Sequence[int]) -> bytes:
        """Return what pages, by number, have, one after the other. From now on the next write to each is reported."""
        if len(pages) == 1:
            address = pages[0] * PAGE_BYTES
            self.faults.protect(address)
            return os.pread(self._memfd, PAGE_BYTES, address)
        data: list[bytes] = []
        for page, count in neighbours(pages):
            self.faults.protect(page * PAGE_BYTES, count * PAGE_BYTES)
            data.append(self.read(page * PAGE_BYTES, count * PAGE_BYTES))
        return b"".join(data)

    def take_pages(self, pages: Sequence[int]) -> bytes:
        """As `copy_pages`, and take the pages away, so that the next touch of each is a fault."""
        if self._taker.can_take:
            return self._taker.take(pages)
        data = self.copy_pages(pages)
        self._taker.drop_pages(pages)
        return data

    def signal(self, tid: int, signo: int) -> None:
        """Send *signo* to thread *tid* of the process, if it is still there."""
        _libc.tgkill(self.pid, tid, signo)

    def close(self) -> None:
        """Kill the process, if it still is there, and give up all descriptors."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.faults.close()
        self.memory.close()
        self._taker.close()
        os.close(self._memfd)

    def _writable(self) -> list[Vma]:
        return [
            vma for vma in read_maps(self.pid) if vma.perms[1] == "w" and not GADGET <= vma.start <= SCRATCH
        ]

    def _make_userfault(self) -> UserFault:
        fd = _call(self.main, "userfaultfd", _O_NONBLOCK_CLOEXEC)
        ours = take_descriptor(self.pid, fd)
        _call(self.main, "close", fd)
        return UserFault(ours)

    def _map_all(self, image: Image) -> None:
        for start, size in image.regions:
            self._map(self.main, start, size, _SHARED_FIXED_NORESERVE)

    def _map(self, by: Tracee, start: int, size: int, flags: int) -> None:
        self._map_file(by, self._memfd, start, size, flags, start)
        self.faults.register(start, size)

    def _map_file(self, by: Tracee, ours: int, start: int, size: int, flags: int, offset: int) -> None:
        self.memory.write(SCRATCH, f"/proc/{os.getpid()}/fd/{ours}".encode() + b"\0")
        fd = _call(by, "openat", _AT_FDCWD, SCRATCH, _O_RDWR_CLOEXEC)
        _call(by, "mmap", start, size, _PROT_READ_WRITE, flags, fd, offset)
        _call(by, "close", fd)


def instance_filter(rules: Iterable[Rule], arch: Arch) -> bytes:
    """Return the filter of *rules* that lets calls from the gadget page pass."""
    head = (
        (_LOAD, 0, 0, _POINTER_OFFSET + 4),
        (_JUMP_IF_EQUAL, 0, 3, gadget.AFTER_SYSCALL >> 32),
        (_LOAD, 0, 0, _POINTER_OFFSET),
        (_JUMP_IF_EQUAL, 0, 1, gadget.AFTER_SYSCALL & 0xFFFFFFFF),
        (_RETURN, 0, 0, Verdict.ALLOW.value),
    )
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in head) + assemble(rules, arch)


def _call(tracee: Tracee, name: str, *args: int) -> int:
    result = gadget.inject(tracee, name, *args)
    if result < 0:
        raise SteppingError(f"the program cannot be prepared: its {name} fails ({os.strerror(-result)})")
    return result


def _launch(program: Program) -> Tracee:
    with _addresses_fixed():
        pending = fork_tracee(program, _OPTIONS)
    tracee = pending.tracee
    while True:
        status = tracee.wait()
        if status is None or not status.is_stop:
            pending.raise_failure()
        if status.event is Event.EXEC:
            break
        tracee.resume()
    pending.close()
    tracee.interrupt()  # the next stop is before the first instruction, and a call can be made there
    tracee.resume()
    while tracee.status is None or tracee.status.event is not Event.STOP:
        status = tracee.wait()
        if status is None or not status.is_stop:
            raise TraceeGoneError(tracee.tid)
        if status.event is not Event.STOP:
            tracee.resume()
    return tracee


@contextlib.contextmanager
def _addresses_fixed() -> Iterator[None]:
    """Let what is executed meanwhile have its memory at the same addresses each time."""
    before = _libc.personality(_PERSONALITY_QUERY)
    _libc.personality(before | _ADDR_NO_RANDOMIZE)
    try:
        yield
    finally:
        _libc.personality(before)


def take_descriptor(pid: int, fd: int) -> int:
    """Return a duplicate of process *pid*'s descriptor *fd*.

    Raises:
        SteppingError: the process is gone, or the kernel refuses.
    """
    pidfd = os.pidfd_open(pid)
    try:
        ours = _libc.syscall(_NR_PIDFD_GETFD, pidfd, fd, 0)
    finally:
        os.close(pidfd)
    if ours < 0:
        raise SteppingError(f"cannot take a descriptor of process {pid}: {os.strerror(ctypes.get_errno())}")
    return int(ours)


def _without_end(data: bytes) -> bytes:
    """Return whole pages of *data* up to the last that is not all zeros."""
    used = len(data.rstrip(b"\0"))
    return data[: -(-used // PAGE_BYTES) * PAGE_BYTES]


def _pages_with_data(start: int, data: bytes) -> Iterator[int]:
    yield from range(start // PAGE_BYTES, (start + len(data)) // PAGE_BYTES)
