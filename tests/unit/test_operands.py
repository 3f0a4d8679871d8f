"""Which memory instructions touch."""

import pytest

from stepping.operands import MemoryAccess, find_accesses

REGISTERS = {
    "rsp": 0x7000,
    "rbp": 0x7100,
    "rax": 0x10,
    "rbx": 0x20_0000_0000,
    "rcx": 3,
    "rdi": 0x8000,
    "rsi": 0x9000,
    "r8": 0x1_0000_0005,
    "fs_base": 0x5000,
}


@pytest.mark.parametrize(
    ("mnemonic", "operands", "found"),
    [
        ("mov", "rax, rbx", []),
        ("lea", "rax, [rbx + 8]", []),
        ("nop", "word ptr [rax + rax]", []),
        ("prefetcht0", "byte ptr [rax]", []),
        ("mov", "rax, qword ptr [rbx + rcx*8 + 0x10]", [("r", 0x20_0000_0028, 8)]),
        ("mov", "dword ptr [rax - 0x20], ecx", [("w", (1 << 64) - 0x10, 4)]),
        ("add", "byte ptr [rip + 0x20], 1", [("rw", 0x1020, 1)]),
        ("cmp", "word ptr [rip - 8], ax", [("r", 0xFF8, 2)]),
        ("mov", "rcx, qword ptr fs:[0xfffffffffffffff8]", [("r", 0x4FF8, 8)]),
        ("lock cmpxchg", "dword ptr [rax], edx", [("rw", 0x10, 4)]),
        ("xchg", "rcx, qword ptr [rax]", [("rw", 0x10, 8)]),
        ("movups", "xmmword ptr [rax], xmm15", [("w", 0x10, 16)]),
        ("vmovdqu", "ymm0, ymmword ptr [rsi]", [("r", 0x9000, 32)]),
        ("mov", "eax, dword ptr [r8d + ecx*2]", [("r", 11, 4)]),
        ("rep movsq", "qword ptr [rdi], qword ptr [rsi]", [("w", 0x8000, 8), ("r", 0x9000, 8)]),
        ("push", "rax", [("w", 0x6FF8, 8)]),
        ("push", "qword ptr [rax]", [("r", 0x10, 8), ("w", 0x6FF8, 8)]),
        ("call", "qword ptr [rax]", [("r", 0x10, 8), ("w", 0x6FF8, 8)]),
        ("call", "0x401000", [("w", 0x6FF8, 8)]),
        ("pop", "rax", [("r", 0x7000, 8)]),
        ("ret", "", [("r", 0x7000, 8)]),
        ("leave", "", [("r", 0x7100, 8)]),
        ("fxsave", "[rax]", [("rw", 0x10, 0)]),
    ],
)
def test_accesses(mnemonic: str, operands: str, found: list[tuple[str, int, int]]) -> None:
    assert find_accesses(mnemonic, operands, 0x1000, REGISTERS) == [MemoryAccess(*one) for one in found]
