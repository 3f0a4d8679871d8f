"""What is executed without an emulator is what the emulator makes of it."""

from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from stepping.registers import AMD64, Registers
from stepping.remote_atomics import direct_operation
from stepping.remote_memory import AtomicOperation, RemoteMap, RemoteVariable, apply_atomic
from stepping.remote_plans import execute_plainly
from stepping.tracee_engine import READ, WRITE, TraceeEngine
from stepping.tracee_memory import TraceeMemory
from stepping.x86_instructions import GENERAL_REGISTERS, decode_instruction, is_narrow_exchange

PC, DATA = 0x401000, 0x500000
SIZE = 64
U64 = (1 << 64) - 1

#: With [rbx + displacement] as the operand; the register field and REX.R are filled in.
OPCODES = {
    "load": b"\x8b",
    "store": b"\x89",
    "xchg": b"\x87",
    "lock xadd": b"\x0f\xc1",
    "lock cmpxchg": b"\x0f\xb1",
}
#: Numbers whose sums and differences carry, overflow and vanish.
NUMBERS = st.integers(0, U64) | st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, U64])


class Bytes:
    """Memory of which one variable is all there is."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.data[address - DATA : address - DATA + size]) if address >= DATA else bytes(size)

    def write(self, address: int, data: bytes) -> None:
        self.data[address - DATA : address - DATA + len(data)] = data

    def allowed(self, address: int) -> int:
        return READ | WRITE

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def atomic(
        self,
        variable: RemoteVariable,
        offset: int,
        operation: AtomicOperation,
        operand: bytes,
        expected: bytes,
    ) -> bytes:
        old = self.get(variable, offset, len(operand))
        new = apply_atomic(operation, old, operand, expected)
        if new is not None:
            self.set(variable, offset, new)
        return old


def code_of(name: str, register: int, displacement: int, *, wide: bool) -> bytes:
    rex = bytes([0x40 | wide << 3 | register >> 3 << 2])
    lock = b"\xf0" if name.startswith("lock") else b""
    return lock + rex + OPCODES[name] + bytes([0x43 | (register & 7) << 3, displacement])


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(OPCODES)),
    register=st.integers(0, 15).filter(lambda number: number != 3),
    displacement=st.integers(0, 56),
    wide=st.booleans(),
    values=st.lists(NUMBERS, min_size=16, max_size=16),
    word=NUMBERS,
    equal=st.booleans(),
)
def test_plain_accesses(
    name: str, register: int, displacement: int, wide: bool, values: list[int], word: int, equal: bool
) -> None:
    code = code_of(name, register, displacement, wide=wide)
    instruction = decode_instruction(code)
    registers = Registers(AMD64, [0] * len(AMD64.names))
    for general, value in zip(GENERAL_REGISTERS, values, strict=True):
        registers[general] = value
    registers["rbx"], registers["eflags"], registers.pc = DATA, 0x202, PC
    if is_narrow_exchange(instruction):
        registers["rax"] &= 0xFFFFFFFF  # the emulator has no opinion of its own on the upper half
    data = bytearray(SIZE)
    data[displacement : displacement + 8] = (registers["rax"] if equal else word).to_bytes(8, "little")

    plain = Bytes(data[:SIZE])
    remote = RemoteMap([RemoteVariable(DATA, SIZE, "x")], cast(TraceeMemory, plain), plain)
    after = execute_plainly(instruction, registers, remote)
    assert after is not None

    emulated = Bytes(data[:SIZE])
    engine = TraceeEngine(emulated)
    try:
        engine.load(registers)
        engine.execute(PC, code.replace(b"\xf0", b"\x3e", 1) if name.startswith("lock") else code)
        expected = engine.read(registers)
    finally:
        engine.close()
    assert after == expected
    assert plain.data == emulated.data
    if instruction.is_locked:
        assert direct_operation(instruction, registers) is not None
