"""What is executed without an emulator is what the emulator makes of it."""

from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from stepping.registers import AMD64, Registers
from stepping.remote_atomics import direct_operation
from stepping.remote_memory import AtomicOperation, RemoteMap, RemoteVariable, apply_atomic
from stepping.remote_plans import plan_of
from stepping.tracee_engine import READ, WRITE, TraceeEngine
from stepping.tracee_memory import TraceeMemory
from stepping.x86_instructions import GENERAL_REGISTERS, decode_instruction, is_narrow_exchange

PC, DATA = 0x401000, 0x500000
SIZE = 64
U64 = (1 << 64) - 1

#: With [rbx + displacement] as the operand; the register field and REX.R are filled in, or the extension given.
OPCODES: dict[str, tuple[bytes, int | None, int]] = {
    "load": (b"\x8b", None, 0),
    "load byte": (b"\x0f\xb6", None, 0),
    "store": (b"\x89", None, 0),
    "store number": (b"\xc7", 0, 4),
    "store byte": (b"\xc6", 0, 1),
    "xchg": (b"\x87", None, 0),
    "lock xadd": (b"\x0f\xc1", None, 0),
    "lock cmpxchg": (b"\x0f\xb1", None, 0),
    "add to memory": (b"\x01", None, 0),
    "lock add": (b"\x01", None, 0),
    "add memory": (b"\x03", None, 0),
    "sub from memory": (b"\x29", None, 0),
    "sub memory": (b"\x2b", None, 0),
    "cmp memory": (b"\x39", None, 0),
    "cmp with memory": (b"\x3b", None, 0),
    "add number": (b"\x83", 0, 1),
    "lock add number": (b"\x81", 0, 4),
    "sub number": (b"\x81", 5, 4),
    "lock sub number": (b"\x83", 5, 1),
    "cmp number": (b"\x83", 7, 1),
    "cmp byte": (b"\x80", 7, 1),
    "inc": (b"\xff", 0, 0),
    "lock inc": (b"\xff", 0, 0),
    "dec": (b"\xff", 1, 0),
    "lock dec": (b"\xff", 1, 0),
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


def code_of(name: str, register: int, displacement: int, number: int, *, wide: bool) -> bytes:
    opcode, extension, immediate_bytes = OPCODES[name]
    field = register if extension is None else extension
    rex = bytes([0x40 | wide << 3 | field >> 3 << 2])
    lock = b"\xf0" if name.startswith("lock") else b""
    immediate = number.to_bytes(8, "little")[:immediate_bytes]
    return lock + rex + opcode + bytes([0x43 | (field & 7) << 3, displacement]) + immediate


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(OPCODES)),
    register=st.integers(0, 15).filter(lambda number: number != 3),
    displacement=st.integers(0, 56),
    wide=st.booleans(),
    values=st.lists(NUMBERS, min_size=16, max_size=16),
    word=NUMBERS,
    number=NUMBERS,
    equal=st.booleans(),
)
def test_plain_accesses(
    name: str,
    register: int,
    displacement: int,
    wide: bool,
    values: list[int],
    word: int,
    number: int,
    equal: bool,
) -> None:
    code = code_of(name, register, displacement, number, wide=wide)
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
    plan = plan_of(instruction)
    assert plan is not None
    after = plan.execute(registers, remote)
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
