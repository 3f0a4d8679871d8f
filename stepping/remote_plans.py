"""The plainest accesses to remote memory without an emulator: moves, additions, comparisons, xadd, xchg, cmpxchg.

That is what Go's compiler makes of reads and writes of numbers and of sync/atomic, and an emulator costs as much as
most of an access. A `Plan` is made of an instruction once, and then executed with registers again and again.
Everything else is left alone: other sizes than 4 and 8 bytes (and single bytes that are read, set or compared),
operands that are not wholly one variable's. A test holds this to what the emulator does, another one both to the
processor.

Source: Intel SDM volume 2 (MOV, MOVZX, ADD, SUB, CMP, INC, DEC, XADD, XCHG, CMPXCHG), volume 1 (EFLAGS).
"""

from dataclasses import dataclass
from enum import Enum, auto

from stepping.registers import AMD64, Registers
from stepping.remote_memory import AtomicOperation, RemoteMap, RemoteStore, RemoteVariable
from stepping.x86_instructions import GENERAL_REGISTERS, Instruction

_CARRY, _PARITY, _ADJUST, _ZERO, _SIGN, _OVERFLOW = 0x1, 0x4, 0x10, 0x40, 0x80, 0x800
_ALL_FLAGS = _CARRY | _PARITY | _ADJUST | _ZERO | _SIGN | _OVERFLOW
_RESUME_FLAG = 1 << 16
_U64 = 0xFFFF_FFFF_FFFF_FFFF
_PLACES = AMD64.index
_PC, _FLAGS, _RAX = _PLACES["rip"], _PLACES["eflags"], _PLACES["rax"]


class _Kind(Enum):
    """What an instruction does with its memory operand and its other one."""

    LOAD = auto()
    STORE = auto()
    EXCHANGE = auto()
    XADD = auto()
    CMPXCHG = auto()
    ADD = auto()
    SUB = auto()
    COMPARE = auto()


#: By opcode: the kind, and whether memory is the first operand.
_ONE_BYTE = {
    0x8B: (_Kind.LOAD, False),
    0x89: (_Kind.STORE, True),
    0x87: (_Kind.EXCHANGE, True),
    0x01: (_Kind.ADD, True),
    0x03: (_Kind.ADD, False),
    0x29: (_Kind.SUB, True),
    0x2B: (_Kind.SUB, False),
    0x39: (_Kind.COMPARE, True),
    0x3B: (_Kind.COMPARE, False),
}
#: The same with an immediate operand, by opcode and extension.
_IMMEDIATE = {
    (0xC7, 0): _Kind.STORE,
    (0xC6, 0): _Kind.STORE,
    (0x83, 0): _Kind.ADD,
    (0x81, 0): _Kind.ADD,
    (0x83, 5): _Kind.SUB,
    (0x81, 5): _Kind.SUB,
    (0x83, 7): _Kind.COMPARE,
    (0x81, 7): _Kind.COMPARE,
    (0x80, 7): _Kind.COMPARE,
}
#: What the store does for a locked one.
_OPERATIONS: dict[_Kind, AtomicOperation] = {
    _Kind.EXCHANGE: "exchange",
    _Kind.XADD: "add",
    _Kind.ADD: "add",
    _Kind.SUB: "add",
    _Kind.CMPXCHG: "compare_exchange",
}
_ONE_BYTE_IMMEDIATE = frozenset({0xC6, 0x80, 0x83})
_OF_BYTES = frozenset({0xC6, 0x80})
_TWO_BYTES = {0xC1: _Kind.XADD, 0xB1: _Kind.CMPXCHG}
_ZERO_EXTENDED_BYTE = 0xB6


@dataclass(frozen=True, slots=True)
class Plan:
    """How to execute one instruction.

    length, is_locked: the instruction's. size: of its memory operand, in bytes; register: where the other operand is
    among the registers, -1 if that is the number *immediate*; memory_first: whether memory is the first operand.
    keeps_carry: of inc and dec. base, index: as `register`; displacement: with the address behind the instruction
    already in it, if base is rip.
    """

    length: int
    is_locked: bool
    kind: _Kind
    size: int
    register: int
    immediate: int
    memory_first: bool
    keeps_carry: bool
    base: int
    index: int
    scale: int
    displacement: int

    def execute(self, registers: Registers, remote: RemoteMap) -> Registers | None:
        """Execute it, to which *registers* point; return the registers after it.

        None: its operand is not wholly one remote variable's; nothing has happened.

        Raises:
            Whatever the store raises.
        """
        after = registers.copy()
        return after if self.apply(after.values(), remote) else None

    def apply(self, values: list[int] | memoryview, remote: RemoteMap) -> bool:
        """As `execute`, on the numbers themselves, which are as they were if this returns False or raises."""
        address = self.displacement
        if self.base >= 0:
            address += values[self.base]
        if self.index >= 0:
            address += values[self.index] * self.scale
        address &= _U64
        size = self.size
        variable = remote.find(address)
        if variable is None:
            return False
        offset = address - variable.address
        if offset + size > variable.size:
            return False
        mask = (1 << 8 * size) - 1
        number = (values[self.register] if self.register >= 0 else self.immediate) & mask
        kind, store = self.kind, remote.store
        if kind is _Kind.STORE:
            store.set(variable, offset, number.to_bytes(size, "little"))
        elif kind is _Kind.LOAD:
            values[self.register] = int.from_bytes(store.get(variable, offset, size), "little")
        elif self.is_locked:
            self._apply_locked(values, number, mask, store, variable, offset)
        else:
            old = int.from_bytes(store.get(variable, offset, size), "little")
            first, second = (old, number) if self.memory_first else (number, old)
            result = first - second if kind is not _Kind.ADD else first + second
            if kind is not _Kind.COMPARE:
                if self.memory_first:
                    store.set(variable, offset, (result & mask).to_bytes(size, "little"))
                else:
                    values[self.register] = result & mask
            self._set_flags(values, first, second, result, subtracts=kind is not _Kind.ADD)
        values[_PC] = values[_PC] + self.length & _U64
        values[_FLAGS] &= ~_RESUME_FLAG
        return True

    def _apply_locked(
        self,
        values: list[int] | memoryview,
        number: int,
        mask: int,
        store: RemoteStore,
        variable: RemoteVariable,
        offset: int,
    ) -> None:
        """Do *number* to the variable in one operation of *store*, and to registers and flags what that means."""
        kind, size = self.kind, self.size
        operand = number if kind is not _Kind.SUB else -number & mask
        wanted = values[_RAX] & mask
        expected = wanted.to_bytes(size, "little") if kind is _Kind.CMPXCHG else b""
        found = store.atomic(variable, offset, _OPERATIONS[kind], operand.to_bytes(size, "little"), expected)
        old = int.from_bytes(found, "little")
        if kind is _Kind.EXCHANGE:
            values[self.register] = old
        elif kind is _Kind.CMPXCHG:
            self._set_flags(values, wanted, old, wanted - old, subtracts=True)
            if old != wanted:
                values[_RAX] = old
        else:
            subtracts = kind is _Kind.SUB
            result = old - number if subtracts else old + number
            self._set_flags(values, old, number, result, subtracts=subtracts)
            if kind is _Kind.XADD:
                values[self.register] = old

    def _set_flags(
        self, values: list[int] | memoryview, a: int, b: int, result: int, *, subtracts: bool
    ) -> None:
        kept = _CARRY if self.keeps_carry else 0
        found = _flags_of(a, b, result, self.size, subtracts=subtracts)
        values[_FLAGS] = values[_FLAGS] & ~(_ALL_FLAGS & ~kept) | found & ~kept


def plan_of(instruction: Instruction) -> Plan | None:
    """Return the plan for *instruction*, None if it is not so plain."""
    operand = instruction.operand
    if operand is None or operand.segment or operand.address_bits != 64:
        return None
    if instruction.encoding not in ("", "rex") or any(
        one in (0x66, 0xF2, 0xF3) for one in instruction.prefixes
    ):
        return None
    chosen = _choose(instruction)
    if chosen is None:
        return None
    kind, size, immediate, memory_first, keeps_carry = chosen
    if instruction.is_locked and (kind not in _OPERATIONS or not memory_first):
        return None
    displacement = operand.displacement + (instruction.size if operand.base == "rip" else 0)
    return Plan(
        *(instruction.size, instruction.is_locked, kind, size),
        -1 if immediate is not None else _PLACES[GENERAL_REGISTERS[instruction.reg]],
        immediate or 0,
        memory_first,
        keeps_carry,
        _PLACES[operand.base] if operand.base else -1,
        _PLACES[operand.index] if operand.index else -1,
        operand.scale,
        displacement,
    )


def _choose(instruction: Instruction) -> tuple[_Kind, int, int | None, bool, bool] | None:
    """Return kind, size, immediate operand if there is one, whether memory is first, whether the carry is kept."""
    opcode, extension = instruction.opcode, instruction.extension
    size = 8 if instruction.wide else 4
    if instruction.map == 1:
        if opcode == _ZERO_EXTENDED_BYTE:
            return _Kind.LOAD, 1, None, False, False
        kind = _TWO_BYTES.get(opcode)
        # Without a lock they are rare, and not atomic.
        return (kind, size, None, True, False) if kind is not None and instruction.is_locked else None
    if instruction.map:
        return None
    if opcode in _ONE_BYTE:
        kind, memory_first = _ONE_BYTE[opcode]
        return kind, size, None, memory_first, False
    if opcode == 0xFF and extension < 2:
        return (_Kind.SUB if extension else _Kind.ADD), size, 1, True, True
    kind = _IMMEDIATE.get((opcode, extension))
    if kind is None:
        return None
    if opcode in _OF_BYTES:
        size = 1
    length = 1 if opcode in _ONE_BYTE_IMMEDIATE else 4
    return kind, size, int.from_bytes(instruction.code[-length:], "little", signed=True), True, False


def _flags_of(a: int, b: int, result: int, size: int, *, subtracts: bool) -> int:
    """Return the flags after an addition or subtraction of *a* and *b* with *result*, which may be out of range."""
    top = 1 << 8 * size - 1
    value = result & (top << 1) - 1
    found = 0
    if not 0 <= result < top << 1:
        found |= _CARRY
    if not (value & 0xFF).bit_count() & 1:
        found |= _PARITY
    if (a ^ b ^ value) & 0x10:
        found |= _ADJUST
    if not value:
        found |= _ZERO
    if value & top:
        found |= _SIGN
    if (a ^ value) & ((a ^ b) if subtracts else (b ^ value)) & top:
        found |= _OVERFLOW
    return found
