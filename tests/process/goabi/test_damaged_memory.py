"""A program whose memory makes no sense: readers say so with this package's errors, and come to an end."""

import random
import zlib
from collections.abc import Iterator

import pytest

from goabi.binary import GoBinary
from goabi.errors import GoAbiError, MemoryFaultError
from goabi.memory import MemoryReader
from goabi.sched import GoRuntime
from goabi.unwind import Unwinder
from goabi.values import Limits, ValueReader
from tests.gofixtures import build
from tests.process.goabi.live import StoppedProgram, stopped

VARIABLES = (
    *("aNode", "bigMap", "grownMap", "bulkyMap", "aChan", "syncChan", "anyMap", "anError", "pointerShape"),
    *("aString", "longSlice", "anArray", "aClosure"),
)


class DamagedMemory:
    """Another reader, of which some reads fault and some give other bytes; the same every time for the same seed."""

    def __init__(self, reader: MemoryReader, seed: int, rate: float) -> None:
        self._reader, self._seed, self._rate = reader, seed, rate

    def read(self, addr: int, size: int, /) -> bytes:
        chance = random.Random(zlib.crc32(f"{self._seed} {addr} {size}".encode()))
        data = self._reader.read(addr, size)
        if chance.random() < self._rate / 4:
            raise MemoryFaultError(addr, size)
        if size and chance.random() < self._rate:
            changed = bytearray(data)
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(size)
                word = chance.choice([b"\0" * 8, b"\xff" * 8, chance.randbytes(8), chance.randbytes(1)])
                changed[at : at + len(word)] = word
            data = bytes(changed[:size])
        return data


@pytest.fixture(scope="module")
def states() -> Iterator[tuple[StoppedProgram, GoBinary]]:
    path = build("goabi_states")
    with stopped(path) as program, GoBinary.open(path) as binary:
        yield program, binary


@pytest.fixture(scope="module")
def variables() -> Iterator[tuple[StoppedProgram, GoBinary]]:
    path = build("goabi_values")
    with stopped(path) as program, GoBinary.open(path) as binary:
        yield program, binary


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_scheduler_and_stacks(states: tuple[StoppedProgram, GoBinary], seed: int, rate: float) -> None:
    program, binary = states
    memory = DamagedMemory(program.memory, seed, rate)
    runtime = GoRuntime(binary, memory, program.bias)
    registers = dict.fromkeys(("rip", "rsp", "rbp"), seed * 0x1111111)
    unwinder = Unwinder(runtime, lambda tid: registers)
    seen = 0
    try:
        for goroutine in runtime.iter_goroutines(dead=True):
            seen += 1
            stack = unwinder.unwind_goroutine(goroutine)
            list(unwinder.iter_source_frames(stack))
            for ask in (
                runtime.labels,
                runtime.waiting_on,
                runtime.wait_reason,
                runtime.entry,
                runtime.is_system,
            ):
                try:
                    ask(goroutine)
                except GoAbiError:
                    pass
    except GoAbiError:
        pass
    for listing in (lambda: list(runtime.iter_ms()), runtime.read_ps):
        try:
            listing()
        except GoAbiError:
            pass
    assert seen < 1000


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_values(variables: tuple[StoppedProgram, GoBinary], seed: int, rate: float) -> None:
    program, binary = variables
    memory = DamagedMemory(program.memory, seed, rate)
    values = ValueReader(GoRuntime(binary, memory, program.bias), Limits(items=2000, values=20_000))
    assert len([values.read_variable(f"main.{name}") for name in VARIABLES]) == len(VARIABLES)
