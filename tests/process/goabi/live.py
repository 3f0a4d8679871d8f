"""A Go fixture as a stopped process: started, waited for, read through /proc, ended for certain."""

import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from goabi.binary import GoBinary
from goabi.errors import MemoryFaultError
from goabi.sched import GoRuntime

AT_ENTRY = 9


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip a test where a program that it asks is not installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


class ProcMemory:
    """`/proc/PID/mem` as a MemoryReader; counts what it reads."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self.reads = 0

    def read(self, addr: int, size: int, /) -> bytes:
        self.reads += 1
        try:
            data = os.pread(self._fd, size, addr)
        except (OSError, OverflowError) as error:
            raise MemoryFaultError(addr, size) from error
        if len(data) != size:
            raise MemoryFaultError(addr + len(data), size)
        return data

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class DumpedGoroutine:
    """A goroutine as runtime.Stack prints it: frames are (function, file, line), innermost first."""

    goid: int
    state: str
    frames: list[tuple[str, str, int]] = field(default_factory=list)
    created_by: str = ""
    creator: int = 0
    created_at: tuple[str, int] = ("", 0)


def parse_dump(text: str) -> dict[int, DumpedGoroutine]:
    dumped = {}
    for block in text.split("\n\n"):
        lines = block.strip().split("\n")
        head = re.match(r"goroutine (\d+)(?: gp=\S+ m=\S+(?: mp=\S+)?)? \[([^\]]*)\]", lines[0])
        assert head, lines[0]
        goroutine = DumpedGoroutine(int(head[1]), re.sub(r", \d+ minutes|, locked to thread", "", head[2]))
        for call, place in zip(lines[1::2], lines[2::2], strict=True):
            where = re.match(r"\t(.*):(\d+)(?: \+0x[0-9a-f]+)?", place)
            assert where, place
            created = re.match(r"created by (\S.*?)(?: in goroutine (\d+))?$", call)
            if created:
                goroutine.created_by, goroutine.creator = created[1], int(created[2] or 0)
                goroutine.created_at = (where[1], int(where[2]))
            else:
                goroutine.frames.append(
                    (re.sub(r"\((?:[^()]|\.\.\.)*\)$", "", call), where[1], int(where[2]))
                )
        dumped[goroutine.goid] = goroutine
    return dumped


@dataclass
class StoppedProgram:
    pid: int
    names: dict[str, int]
    dump: dict[int, DumpedGoroutine]
    facts: dict[str, str]
    memory: ProcMemory
    bias: int
    process: "subprocess.Popen[str]"

    def runtime(self, path: Path) -> GoRuntime:
        return GoRuntime(GoBinary.open(path), self.memory, self.bias)


def stat_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for_input(pid: int) -> None:
    """Wait until some thread of the process is in read(0, ...), as fixtures do when they have got ready."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                words = (task / "syscall").read_text().split()
            except OSError:
                continue  # the thread has ended
            if words[:2] == ["0", "0x0"]:
                return
        os.sched_yield()
    raise AssertionError(f"process {pid} never waited for its input")


def load_entry(pid: int) -> int:
    raw = Path(f"/proc/{pid}/auxv").read_bytes()
    return int(dict(struct.iter_unpack("<QQ", raw))[AT_ENTRY])


@contextmanager
def stopped(path: Path, *args: str, stop: bool = True, reads: bool = True) -> Iterator[StoppedProgram]:
    """Run a fixture until it prints "ready" (and waits for input, if it `reads`) and stop it; kill it at the end."""
    process = subprocess.Popen([path, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    memory = None
    try:
        assert process.stdout is not None
        names: dict[str, int] = {}
        facts: dict[str, str] = {}
        dump = ""
        while True:
            line = process.stdout.readline()
            assert line, f"{path} ended before it was ready"
            word, _, rest = line.strip().partition(" ")
            if word == "ready":
                break
            if word == "goid":
                name, goid = rest.split()
                names[name] = int(goid)
            elif word == "stacks":
                while len(dump.encode()) < int(rest):
                    dump += process.stdout.readline()
            else:
                facts[word] = rest
        if reads:
            wait_for_input(process.pid)
        if stop:
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
        memory = ProcMemory(process.pid)
        with GoBinary.open(path) as binary:
            bias = binary.elf.load_bias(load_entry(process.pid))
        yield StoppedProgram(
            process.pid, names, parse_dump(dump) if dump else {}, facts, memory, bias, process
        )
    finally:
        if memory is not None:
            memory.close()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
