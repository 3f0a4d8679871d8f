"""Register layouts: their sizes are the kernel's, values go in and out unchanged, roles name what exists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepping.errors import SteppingError
from stepping.registers import AMD64, ARM64, RegisterLayout, Registers

U64 = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(("layout", "size"), [(AMD64, 27 * 8), (ARM64, 34 * 8)])
def test_layout(layout: RegisterLayout, size: int) -> None:
    assert layout.codec.size == size
    assert len(set(layout.names)) == len(layout.names)
    roles = {layout.pc, layout.sp, layout.bp, layout.g, layout.sysno, layout.result, *layout.args}
    assert roles <= set(layout.names)
    assert layout.pending is None or layout.pending in layout.names


@given(st.lists(U64, min_size=27, max_size=27))
def test_round_trip(values: list[int]) -> None:
    raw = AMD64.codec.pack(*values)
    registers = Registers.decode(AMD64, raw)
    assert registers.encode() == raw
    assert list(registers.as_dict().values()) == values
    assert registers == registers.copy()
    assert registers.pc == registers["rip"] == values[16]


@pytest.mark.parametrize("size", [0, 17 * 4, 27 * 8 - 1, 34 * 8])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(SteppingError, match="32-bit programs"):
        Registers.decode(AMD64, bytes(size))


def test_values_are_taken_modulo_64_bits() -> None:
    registers = Registers.decode(AMD64, bytes(AMD64.codec.size))
    registers["rax"] = -14
    assert registers["rax"] == (1 << 64) - 14
    assert registers.result == -14
    copy = registers.copy()
    copy.pc, copy.sp = 0x401000, 0x7FFF0000
    assert (copy.pc, copy.sp, registers.pc) == (0x401000, 0x7FFF0000, 0)
    assert copy != registers


def test_prepare_syscall() -> None:
    registers = Registers.decode(AMD64, bytes([0xAA]) * AMD64.codec.size)
    registers.prepare_syscall(0x401000, 9, (1, -1))
    assert (registers.pc, registers["rax"], registers["orig_rax"]) == (0x401000, 9, (1 << 64) - 1)
    assert [registers[name] for name in AMD64.args] == [1, (1 << 64) - 1, 0, 0, 0, 0]
    assert registers["rbx"] == 0xAAAA_AAAA_AAAA_AAAA
