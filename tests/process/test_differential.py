"""Random pieces of Go's compiled code, instruction by instruction on the processor and on Unicorn: they agree."""

import struct
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepping import ptrace_api
from stepping.block_cache import Block
from stepping.blocks import Decoder
from stepping.emulate import EmulateExecutor
from stepping.errors import MemoryFaultError
from stepping.executor import CannotExecute, CountUsedUp, LeftRange, MemoryFault, RunResult, Signalled, Until
from stepping.instructions import Flow
from stepping.operands import MemoryAccess, find_accesses
from stepping.ptrace_api import RegisterSet
from stepping.registers import AMD64
from tests.process.steppable import ROOM_BYTES, Steppable

ONE = Until(instructions=1)
SCRATCH_BYTES = 0x2000
CARRY, PARITY, ADJUST, ZERO, SIGN, DIRECTION, OVERFLOW = 1, 4, 0x10, 0x40, 0x80, 0x400, 0x800
ALL = CARRY | PARITY | ADJUST | ZERO | SIGN | DIRECTION | OVERFLOW

#: Flags that the manual leaves undefined, by the beginning of the mnemonic. Source: Intel SDM volume 2.
UNDEFINED = {
    ("sh", "sal", "sar"): ADJUST | OVERFLOW | CARRY,  # for counts above 1, or above the width
    ("ro", "rc"): OVERFLOW,
    ("mul", "imul"): SIGN | ZERO | ADJUST | PARITY,
    ("div", "idiv"): ALL & ~DIRECTION,
    ("and", "or", "xor", "test"): ADJUST,
    ("bsf", "bsr"): ALL & ~DIRECTION & ~ZERO,
    ("bt", "lzcnt", "tzcnt"): OVERFLOW | SIGN | ADJUST | PARITY,
    ("andn", "bextr", "bls", "bzhi"): ADJUST | PARITY | SIGN,
}
#: Whose results the manual only bounds; and those that tell what time it is, or where they run.
INEXACT = (
    "rcp",
    "rsqrt",
    "rdtsc",
    "cpuid",
    "rdrand",
    "xgetbv",
    "fx",
    "xsave",
    "xrstor",
    "ldmxcsr",
    "stmxcsr",
)
#: With a bit's number in a register, these touch memory as far from the operand's address as that number says.
BITS = ("bt", "bts", "btr", "btc")
INTERESTING = [
    0,
    1,
    7,
    63,
    64,
    0x7F,
    0x80,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]
GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{number}" for number in range(8, 16)))


class Pair:
    """The program, both executors, and the memory that registers lead to."""

    def __init__(self) -> None:
        self.program = Steppable()
        self.emulator = EmulateExecutor(self.program.breakpoints, self.program.memory)
        self.decoder = Decoder("amd64")
        self.scratch = self.program.stack
        self.sp = self.program.stack + ROOM_BYTES // 2
        self.compared = 0

    def set_up(self, block: Block, chance: Random) -> None:
        tracee = self.program.tracee
        tracee.drop_signal()
        registers = self.program.registers.copy()
        for name in GENERAL:
            pointer = self.scratch + 8 * chance.randrange(SCRATCH_BYTES // 8)
            registers[name] = chance.choice([pointer, chance.choice(INTERESTING), chance.getrandbits(64)])
        registers.pc, registers.sp = block.start, self.sp
        registers["eflags"] = 0x202 | chance.getrandbits(12) & ALL & ~DIRECTION
        registers["orig_rax"] = (1 << 64) - 1
        registers["fs_base"] = self.sp + 0x1000
        tracee.write_registers(registers)
        self.program.memory.write(self.scratch, chance.randbytes(64) * (SCRATCH_BYTES // 64 + 1))
        self.program.memory.write(self.sp - 0x1000, chance.randbytes(64) * 128)
        vectors = bytearray(ptrace_api.getregset(tracee.tid, RegisterSet.FLOAT))
        for index in range(32):
            struct.pack_into("<d", vectors, 160 + 8 * index, chance.uniform(-1e6, 1e6))
        ptrace_api.setregset(tracee.tid, bytes(vectors), RegisterSet.FLOAT)

    def step_both(self) -> bool:
        """Execute one instruction on both; the thread is where the processor left it. False: it cannot go on."""
        program, tracee = self.program, self.program.tracee
        registers = tracee.read_registers()
        code = program.memory.read(registers.pc, 15)
        _, size, mnemonic, operands = next(self.decoder.iter_text(code, registers.pc))
        flow = self.decoder.decode(code, registers.pc).flow
        if flow > Flow.CALL or mnemonic.startswith(INEXACT) or "rep" in mnemonic:
            return False
        accesses = find_accesses(mnemonic, operands, registers.pc + size, registers.as_dict())
        if not all(map(is_comparable, accesses)) or (mnemonic in BITS and accesses):
            return False
        vectors = ptrace_api.getregset(tracee.tid, RegisterSet.FLOAT)
        touched = self._snapshot(registers.as_dict(), accesses)
        emulated = self.emulator.run(tracee, ONE)
        if isinstance(emulated, CannotExecute):
            return False
        after_emulated = self._state(mnemonic, touched)
        tracee.write_registers(registers)
        ptrace_api.setregset(tracee.tid, vectors, RegisterSet.FLOAT)
        for address, before in touched.items():
            program.memory.write(address, before)
        native = program.stepper.run(tracee, ONE)
        if isinstance(native, Signalled):
            tracee.drop_signal()
            return False  # a division; Unicorn's says so by an exception of its own
        assert same_result(native, emulated), f"{mnemonic} {operands}: {native}, {emulated}"
        if not isinstance(native, CountUsedUp | LeftRange):
            tracee.drop_signal()
            return False
        assert self._state(mnemonic, touched) == after_emulated, f"{mnemonic} {operands} at {registers.pc:#x}"
        self.compared += 1
        return program.binary.functions.find_function(native.pc) is not None

    def _snapshot(self, registers: dict[str, int], accesses: list[MemoryAccess]) -> dict[int, bytes]:
        """Return what is in the memory that an instruction may change, and in much that it must not."""
        memory = self.program.memory
        places = {self.scratch: SCRATCH_BYTES + 64, self.sp - 0x1000: 0x2000}
        places |= {access.address: access.size or 64 for access in accesses}
        places[registers["rdi"]] = 64  # where string instructions store
        found = {}
        for address, size in places.items():
            try:
                found[address] = memory.read(address, size)
            except (MemoryFaultError, OverflowError):
                pass  # the instruction will fault, on both
        return found

    def _state(self, mnemonic: str, touched: dict[int, bytes]) -> object:
        tracee, memory = self.program.tracee, self.program.memory
        registers = tracee.read_registers().as_dict()
        flags = ALL
        for beginnings, undefined in UNDEFINED.items():
            if mnemonic.startswith(beginnings):
                flags &= ~undefined
        general = {name: registers[name] for name in (*GENERAL, "rsp", "rip")}
        vectors = ptrace_api.getregset(tracee.tid, RegisterSet.FLOAT)[160:416]
        contents = {address: memory.read(address, len(before)) for address, before in touched.items()}
        return general, registers["eflags"] & flags, vectors, contents


def is_comparable(access: MemoryAccess) -> bool:
    """Whether both can be asked for it: the address is canonical, of 48 significant bits.

    For one that is not, the processor raises an exception that tells no address, and Unicorn, whose addresses have 52
    bits, cuts it, touches what is there, and may so change what has nothing to do with the instruction.
    """
    return all(at < 1 << 47 or at >= (1 << 64) - (1 << 47) for at in (access.address, access.address + 64))


def same_result(native: RunResult, emulated: RunResult) -> bool:
    if isinstance(native, MemoryFault):
        same_place = isinstance(emulated, MemoryFault) and native.pc == emulated.pc
        return same_place and native.address % (1 << 52) == emulated.address  # type: ignore[union-attr]
    return native == emulated


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    assert AMD64.arch == "amd64"
    one = Pair()
    yield one
    assert one.compared > 100  # most of what is tried can be compared
    one.emulator.close()
    one.program.close()


def check(pair: Pair, data: st.DataObject) -> None:
    block = data.draw(st.sampled_from(pair.program.all))
    pair.set_up(block, Random(data.draw(st.integers(0, (1 << 32) - 1))))
    for _ in range(min(block.instructions, 12)):
        if not pair.step_both():
            break


@settings(max_examples=80)
@given(data=st.data())
def test_processors_agree(pair: Pair, data: st.DataObject) -> None:
    check(pair, data)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=5000)
@given(data=st.data())
def test_processors_agree_at_length(pair: Pair, data: st.DataObject) -> None:
    check(pair, data)
