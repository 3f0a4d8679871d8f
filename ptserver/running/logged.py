"""`ptserver step --trace`: runs a program to its end, and logs each instruction, block or access to memory."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

from goabi.binary import GoBinary
from goabi.elf_header import ElfHeader
from goabi.errors import GoAbiError
from ptserver.blocks.log import CodeLog, Kind
from ptserver.errors import LaunchError
from ptserver.hosts.endings import end_as
from ptserver.inspection.process_memory import read_load_bias
from ptserver.machine import native_arch
from ptserver.running.here import environment
from ptserver.tracelog.errors import TraceOutputError
from stepping.errors import MemoryFaultError
from stepping.launch import Program
from stepping.operands import MemoryAccess, find_accesses
from stepping.ptrace_api import FOLLOW_ALL
from stepping.registers import Registers
from stepping.stepped_run import SteppedRun
from stepping.tracee_launch import launch_stopped
from stepping.tracee_memory import TraceeMemory


def run_logged(
    path: str,
    header: ElfHeader,
    argv: list[bytes],
    kind: Kind,
    *,
    emulated: bool,
    seed: int | None = None,
    output: str | None = None,
    as_json: bool = False,
) -> int:
    """Run the program, by single steps or *emulated*; return the exit status for this process.

    output: the file that the log goes to; standard error without one.

    Raises:
        PtServerError, SteppingError: it cannot be run, or the log cannot be written.
    """
    with _writing(output) as write:
        binary = None
        with contextlib.suppress(GoAbiError):
            binary = GoBinary.open(path, prefer_table=True)
        try:
            if emulated or header.arch != native_arch():
                status = _run_emulated(path, argv, kind, write, binary, seed, as_json=as_json)
            else:
                status = _run_stepped(path, argv, kind, write, binary, as_json=as_json)
        finally:
            if binary is not None:
                binary.close()
    return end_as(status)


@contextlib.contextmanager
def _writing(output: str | None) -> Iterator[Callable[[str], object]]:
    if output is None:
        yield sys.stderr.write
        return
    try:
        file = open(output, "w", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    except OSError as error:
        raise TraceOutputError(f"the log cannot be written to {output}: {error.strerror}") from error
    with file:
        yield file.write


def _run_stepped(
    path: str,
    argv: list[bytes],
    kind: Kind,
    write: Callable[[str], object],
    binary: GoBinary | None,
    *,
    as_json: bool,
) -> int:
    if native_arch() != "amd64" and kind == "mem":
        raise LaunchError(
            "what arm64's instructions touch can be logged on the emulator only: --engine=emulate"
        )
    signal.signal(signal.SIGINT, lambda *_: None)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    group = launch_stopped(Program(path, argv, environment()), FOLLOW_ALL)
    memory = TraceeMemory(group.pid)
    bias = read_load_bias(binary, group.pid) if binary is not None else 0
    log = CodeLog(kind, write, _reader(memory.read), native_arch(), as_json=as_json, binary=binary, bias=bias)

    def observe(tid: int, registers: Registers) -> None:
        known = log.instruction(tid, registers.pc)
        if kind == "mem":
            values = registers.as_dict()
            for access in find_accesses(known.mnemonic, known.operands, known.end, values):
                log.access(tid, known, access)

    try:
        return SteppedRun(group, observe).run().raw_end
    finally:
        memory.close()


def _run_emulated(
    path: str,
    argv: list[bytes],
    kind: Kind,
    write: Callable[[str], object],
    binary: GoBinary | None,
    seed: int | None,
    *,
    as_json: bool,
) -> int:
    from ptserver.debugger.emulated_target import EmulatedTarget
    from ptserver.debugger.program import load_bias

    target = EmulatedTarget(path, argv, environment(), seed)
    bias = load_bias(binary, target.read_auxv()) if binary is not None else 0
    log = CodeLog(
        kind,
        write,
        _reader(target.read_memory),
        target.layout.arch,
        as_json=as_json,
        binary=binary,
        bias=bias,
    )
    known = None

    def on_instruction(tid: int, pc: int) -> None:
        nonlocal known
        known = log.instruction(tid, pc)

    def on_access(tid: int, written: bool, address: int, size: int) -> None:
        if known is not None:
            log.access(tid, known, MemoryAccess("w" if written else "r", address, size))

    target.observe(on_instruction, on_access if kind == "mem" else None)
    try:
        stop = target.cont()
        while stop.reason != "exited":
            stop = target.cont()
        return stop.status
    finally:
        target.kill()


def _reader(read: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    """Return a function that reads as much as there is."""

    def read_some(address: int, size: int) -> bytes:
        for wanted in (size, min(size, 4096 - address % 4096)):
            try:
                return read(address, wanted)
            except MemoryFaultError:
                continue
        return b""

    return read_some
