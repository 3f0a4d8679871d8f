"""Blocks that touch remote memory several times are served in one stop (`stepping.remote_rest`)."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from goabi.elf import ElfFile
from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_ALL
from stepping.remote_access import RemoteAccess
from stepping.remote_memory import AtomicOperation, RemoteMap, RemoteVariable, apply_atomic
from stepping.remote_setup import prepare
from stepping.tracee import Tracee
from stepping.tracee_launch import launch_stopped
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import WaitKind
from tests.cfixtures import build_c
from tests.process.tracees import end

_BREAKPOINT = b"\xcc"


class Lost(Exception):
    """What a store raises whose server is gone."""


class Store:
    """Keeps one variable and counts; the access number *lost_at* fails."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.accesses: list[str] = []
        self.lost_at = 0

    def _count(self, what: str) -> None:
        self.accesses.append(what)
        if len(self.accesses) == self.lost_at:
            raise Lost

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        self._count("get")
        return bytes(self.data[offset : offset + size])

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        self._count("set")
        self.data[offset : offset + len(data)] = data

    def atomic(
        self,
        variable: RemoteVariable,
        offset: int,
        operation: AtomicOperation,
        operand: bytes,
        expected: bytes,
    ) -> bytes:
        self._count(operation)
        old = bytes(self.data[offset : offset + len(operand)])
        new = apply_atomic(operation, old, operand, expected)
        if new is not None:
            self.data[offset : offset + len(new)] = new
        return old


@dataclass
class Bench:
    tracee: Tracee
    elf: ElfFile
    memory: TraceeMemory
    access: RemoteAccess
    store: Store

    def at(self, name: str) -> int:
        symbol = self.elf.find_symbol(name)
        assert symbol is not None
        return symbol.addr

    def run(self, start: str, stop: str) -> list[int]:
        """Run between two names; return where the thread was stopped for remote memory."""
        registers = self.tracee.read_registers()
        registers.pc, registers["orig_rax"] = self.at(start), (1 << 64) - 1
        self.tracee.write_registers(registers)
        self.memory.write(self.at(stop), _BREAKPOINT)
        stops: list[int] = []
        while True:
            self.tracee.resume()
            status = self.tracee.wait()
            assert status is not None
            assert status.kind is WaitKind.SIGNAL_DELIVERY
            registers = self.tracee.read_registers()
            if status.signo == signal.SIGTRAP:
                assert registers.pc == self.at(stop) + 1
                self.tracee.drop_signal()
                return stops
            assert self.access.fault_address(self.tracee) is not None
            stops.append(registers.pc)
            assert self.access.serve(self.tracee, registers)


@pytest.fixture
def bench() -> Iterator[Bench]:
    path = build_c("executor_c", flags=("-nostdlib", "-static", "-no-pie"))
    group = launch_stopped(Program(str(path), [b"executor_c"], []), FOLLOW_ALL)
    memory = TraceeMemory(group.pid)
    leader = group.leader
    assert leader is not None
    with ElfFile(path) as elf, contextlib.ExitStack() as stack:
        stack.callback(end, group)
        stack.callback(memory.close)
        symbol = elf.find_symbol("variable")
        assert symbol is not None
        variable = RemoteVariable(symbol.addr, 256, "variable")
        prepared = prepare(leader, memory, {}, [variable], elf.header.entry)
        store = Store(256)
        access = RemoteAccess(group.pid, RemoteMap(prepared.variables, memory, store), prepared.scratch)
        stack.callback(access.close)
        yield Bench(leader, elf, memory, access, store)


def test_a_block_is_served_in_one_stop(bench: Bench) -> None:
    word = (0x1122334455667788).to_bytes(8, "little")
    stops = bench.run("stores", "moves_done")
    assert bench.store.data[:32] == (0x1122334455667789).to_bytes(8, "little") + bytes(8) + word + word
    assert bench.store.data[64:96] == bench.store.data[:32]
    # The first store, and rep movsb, which is not executed along with others.
    assert len(stops) == 2
    assert bench.store.accesses[:3] == ["set", "add", "set"]


@pytest.mark.parametrize(("lost_at", "done"), [(1, 0), (2, 1), (3, 2)])
def test_a_store_that_is_lost_in_the_middle(bench: Bench, lost_at: int, done: int) -> None:
    """The thread is in front of the very instruction that was not done."""
    bench.store.lost_at = lost_at
    with pytest.raises(Lost):
        bench.run("stores", "moves_done")
    words = (0, 0x1122334455667788, 0x1122334455667789)
    assert bench.store.data[:8] == words[done].to_bytes(8, "little")
    assert bench.store.data[16:32] == bytes(16)
    code = bench.memory.read(bench.tracee.read_registers().pc, 5)
    starts = (b"\x48\x89\x05", b"\xf0\x48\xff\x05", b"\xf3\x0f\x7f")
    assert code.startswith(starts[done])
    bench.store.lost_at = 0
    bench.tracee.drop_signal()
    registers = bench.tracee.read_registers()
    assert bench.access.serve(bench.tracee, registers)
    assert bench.store.data[:8] == words[2].to_bytes(8, "little")
