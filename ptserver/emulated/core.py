"""Writes a core of an emulated program, which cannot be left stopped: it is this process's own memory.

All mapped memory is in it, and every thread, the one that ran last as the current one. Pages of zeros are holes in
the file. Of remote variables it has what the program held before they became remote.

Thread rules: the machine's thread.
"""

import contextlib
import os
import time

from ptserver.emulated.thread_state import read_registers, read_vectors
from ptserver.errors import PtServerError
from ptserver.inspection.core_format import (
    ProcessState,
    Segment,
    ThreadState,
    encode_headers,
    encode_notes,
    place_segments,
)
from stepping.emulation.address_space import PAGE_BYTES, PROT_EXEC, PROT_READ, PROT_WRITE
from stepping.emulation.machine import Machine
from stepping.registers import LAYOUTS

_LETTERS = ((PROT_READ, "r"), (PROT_WRITE, "w"), (PROT_EXEC, "x"))
_NO_PAGE = bytes(PAGE_BYTES)
_PIECE_BYTES = 1 << 20


class CoreNotWrittenError(PtServerError):
    """The core of an emulated program cannot be written."""


def write_core(machine: Machine, auxv: bytes, folder: str = ".") -> str:
    """Write a core of the program of *machine*, which is stopped, into *folder*; return its path.

    Only its owner may read it. auxv: the program's auxiliary vector.

    Raises:
        CoreNotWrittenError: it cannot be written.
    """
    name = os.path.basename(machine.path)
    path = os.path.join(folder, f"{name}.{machine.pid}.core")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CoreNotWrittenError(f"cannot write a core to {path}: {error.strerror}") from error
    try:
        _write(machine, auxv, fd)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise CoreNotWrittenError(f"cannot write a core to {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return os.path.abspath(path)


def _write(machine: Machine, auxv: bytes, fd: int) -> None:
    arch = machine.abi.arch
    vmas = [vma for vma in machine.space.vmas() if vma.protection and not vma.hollow]
    segments = [Segment(vma.start, vma.end, _perms(vma.protection), kept=True) for vma in vmas]
    notes = encode_notes(_process(machine, auxv), _threads(machine))
    offsets = place_segments(segments, len(notes))
    os.pwrite(fd, encode_headers(arch, segments, offsets, notes), 0)
    for vma, offset in zip(vmas, offsets, strict=False):
        for start in range(vma.start, vma.end, _PIECE_BYTES):
            _write_piece(machine, fd, offset - vma.start, start, min(start + _PIECE_BYTES, vma.end))
    os.ftruncate(fd, offsets[-1])


def _write_piece(machine: Machine, fd: int, distance: int, start: int, end: int) -> None:
    """Write the pages from *start* to *end* that are not zero *distance* behind their addresses."""
    data = bytes(machine.space.view[start:end])
    if not data.strip(b"\0"):
        return
    for at in range(0, end - start, PAGE_BYTES):
        page = data[at : at + PAGE_BYTES]
        if page != _NO_PAGE:
            os.pwrite(fd, page, distance + start + at)


def _threads(machine: Machine) -> list[ThreadState]:
    layout = LAYOUTS[machine.abi.arch]
    threads = sorted(machine.threads.values(), key=lambda thread: (thread is not machine.current, thread.tid))
    return [
        ThreadState(thread.tid, read_registers(thread, layout).encode(), read_vectors(thread, layout), b"")
        for thread in threads
    ]


def _process(machine: Machine, auxv: bytes) -> ProcessState:
    path = os.fsencode(os.path.abspath(machine.path))
    code = machine.space.find(machine.load_bias or min(vma.start for vma in machine.space.vmas()))
    return ProcessState(
        *(machine.pid, os.getppid(), os.getpgrp(), os.getsid(0), os.getuid(), os.getgid()),
        *("R", os.path.basename(path), path, auxv),
        [(code.start, code.end, 0, path)] if code is not None else [],
        time.monotonic_ns(),
    )


def _perms(protection: int) -> str:
    return "".join(letter if protection & flag else "-" for flag, letter in _LETTERS) + "p"
