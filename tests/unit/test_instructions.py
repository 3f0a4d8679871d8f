"""What instructions do to control and memory, by their text and from their bytes."""

import pytest

from stepping.blocks import Decoder
from stepping.instructions import Flow, Touch, classify_amd64, classify_arm64

NEXT = Flow.NEXT
END = 0x1000

AMD64 = [
    ("mov", "rax, rbx", NEXT, Touch.NOTHING, 0),
    ("lea", "rax, [rbx + rcx*8]", NEXT, Touch.NOTHING, 0),
    ("nop", "word ptr [rax + rax]", NEXT, Touch.NOTHING, 0),
    ("prefetcht0", "byte ptr [rax]", NEXT, Touch.NOTHING, 0),
    ("mov", "rax, qword ptr [rsp]", NEXT, Touch.STACK, 0),
    ("mov", "qword ptr [rsp + 8], rax", NEXT, Touch.STACK, 0),
    ("mov", "qword ptr [rsp - 0x18], rax", NEXT, Touch.STACK, 0),
    ("mov", "rax, qword ptr [rsp + rcx*8 + 0x20]", NEXT, Touch.MEMORY, 0),
    ("mov", "rax, qword ptr [rsp + 0x1fff0]", NEXT, Touch.MEMORY, 0),
    ("mov", "rax, qword ptr [rsp + 0x1ff0]", NEXT, Touch.STACK, 0),
    ("mov", "rax, qword ptr [rsp + rcx]", NEXT, Touch.MEMORY, 0),
    ("mov", "rax, qword ptr [rbp - 8]", NEXT, Touch.MEMORY, 0),
    ("mov", "rax, qword ptr [rip + 0x20]", NEXT, Touch.GLOBAL, 0x1020),
    ("mov", "rax, qword ptr [rip - 8]", NEXT, Touch.GLOBAL, 0xFF8),
    ("mov", "rax, qword ptr [rip]", NEXT, Touch.GLOBAL, 0x1000),
    ("mov", "rax, qword ptr [0x1234]", NEXT, Touch.MEMORY, 0),
    ("mov", "rax, qword ptr fs:[0xfffffffffffffff8]", NEXT, Touch.STACK, 0),
    ("mov", "rax, qword ptr fs:[rcx]", NEXT, Touch.MEMORY, 0),
    ("push", "rax", NEXT, Touch.STACK, 0),
    ("push", "qword ptr [rax]", NEXT, Touch.STACK | Touch.MEMORY, 0),
    ("leave", "", NEXT, Touch.MEMORY, 0),
    ("rep movsq", "qword ptr [rdi], qword ptr [rsi]", NEXT, Touch.MEMORY, 0),
    ("rep stosq", "qword ptr [rdi], rax", NEXT, Touch.MEMORY, 0),
    ("lock cmpxchg", "dword ptr [rcx], edx", NEXT, Touch.MEMORY | Touch.ATOMIC, 0),
    ("lock inc", "dword ptr [rip + 0x10]", NEXT, Touch.GLOBAL | Touch.ATOMIC, 0x1010),
    ("xchg", "dword ptr [rbx], eax", NEXT, Touch.MEMORY | Touch.ATOMIC, 0),
    ("xchg", "rbx, rax", NEXT, Touch.NOTHING, 0),
    ("vmovdqu", "ymm0, ymmword ptr [rsi]", NEXT, Touch.MEMORY | Touch.FOREIGN, 0),
    ("vzeroupper", "", NEXT, Touch.FOREIGN, 0),
    ("verr", "ax", NEXT, Touch.NOTHING, 0),
    ("jmp", "0x2000", Flow.JUMP, Touch.NOTHING, 0x2000),
    ("jne", "0x2000", Flow.BRANCH, Touch.NOTHING, 0x2000),
    ("jrcxz", "0x2000", Flow.BRANCH, Touch.NOTHING, 0x2000),
    ("jmp", "rax", Flow.INDIRECT_JUMP, Touch.NOTHING, 0),
    ("jmp", "qword ptr [rcx + rax*8]", Flow.INDIRECT_JUMP, Touch.MEMORY, 0),
    ("call", "0x2000", Flow.CALL, Touch.STACK, 0x2000),
    ("call", "rcx", Flow.INDIRECT_CALL, Touch.STACK, 0),
    ("ret", "", Flow.RETURN, Touch.STACK, 0),
    ("syscall", "", Flow.SYSCALL, Touch.SYSCALL, 0),
    ("int", "0x80", Flow.SYSCALL, Touch.SYSCALL, 0),
    ("int3", "", Flow.TRAP, Touch.NOTHING, 0),
    ("ud2", "", Flow.TRAP, Touch.NOTHING, 0),
]

ARM64 = [
    ("mov", "x0, x1", NEXT, Touch.NOTHING, 0),
    ("adrp", "x0, #0x2000", NEXT, Touch.NOTHING, 0),
    ("ldr", "x0, [sp, #0x10]", NEXT, Touch.STACK, 0),
    ("str", "x30, [sp, #-0x20]!", NEXT, Touch.STACK, 0),
    ("ldp", "x29, x30, [sp], #0x20", NEXT, Touch.STACK, 0),
    ("ldr", "x0, [sp, x1, lsl #3]", NEXT, Touch.MEMORY, 0),
    ("ldr", "x0, [x1]", NEXT, Touch.MEMORY, 0),
    ("ldr", "x0, #0x2000", NEXT, Touch.GLOBAL, 0x2000),
    ("ldaxr", "w0, [x1]", NEXT, Touch.MEMORY | Touch.ATOMIC, 0),
    ("stlxr", "w0, w1, [x2]", NEXT, Touch.MEMORY | Touch.ATOMIC, 0),
    ("casal", "w0, w1, [x2]", NEXT, Touch.MEMORY | Touch.ATOMIC, 0),
    ("ldaddal", "x0, x1, [x2]", NEXT, Touch.MEMORY | Touch.ATOMIC, 0),
    ("swpal", "x0, x1, [x2]", NEXT, Touch.MEMORY | Touch.ATOMIC, 0),
    ("ldar", "x0, [x1]", NEXT, Touch.MEMORY, 0),
    ("prfm", "pldl1keep, [x0]", NEXT, Touch.NOTHING, 0),
    ("dc", "zva, x0", NEXT, Touch.MEMORY, 0),
    ("b", "#0x2000", Flow.JUMP, Touch.NOTHING, 0x2000),
    ("b.ne", "#0x2000", Flow.BRANCH, Touch.NOTHING, 0x2000),
    ("cbz", "x0, #0x2000", Flow.BRANCH, Touch.NOTHING, 0x2000),
    ("tbnz", "w0, #3, #0x2000", Flow.BRANCH, Touch.NOTHING, 0x2000),
    ("bl", "#0x2000", Flow.CALL, Touch.NOTHING, 0x2000),
    ("blr", "x9", Flow.INDIRECT_CALL, Touch.NOTHING, 0),
    ("br", "x9", Flow.INDIRECT_JUMP, Touch.NOTHING, 0),
    ("ret", "", Flow.RETURN, Touch.NOTHING, 0),
    ("svc", "#0", Flow.SYSCALL, Touch.SYSCALL, 0),
    ("brk", "#0", Flow.TRAP, Touch.NOTHING, 0),
]


@pytest.mark.parametrize(("mnemonic", "operands", "flow", "touch", "target"), AMD64)
def test_amd64(mnemonic: str, operands: str, flow: Flow, touch: Touch, target: int) -> None:
    assert classify_amd64(mnemonic, operands, END) == (flow, touch, target)


@pytest.mark.parametrize(("mnemonic", "operands", "flow", "touch", "target"), ARM64)
def test_arm64(mnemonic: str, operands: str, flow: Flow, touch: Touch, target: int) -> None:
    assert classify_arm64(mnemonic, operands, END) == (flow, touch, target)


def test_what_is_remembered_is_the_same_elsewhere() -> None:
    """Targets are relative; a jump to itself is one, too."""
    code = bytes.fromhex("ebfe 7502 e800000000 488b0510000000 c3")
    decoder = Decoder("amd64")
    for address in (0x1000, 0x2000):
        found = [
            (at - address, size, traits.flow, traits.target)
            for at, size, traits in decoder.iter_traits(code, address)
        ]
        assert found[0] == (0, 2, Flow.JUMP, address)
        assert found[1] == (2, 2, Flow.BRANCH, address + 6)
        assert found[2] == (4, 5, Flow.CALL, address + 9)
        assert [one[2] for one in found[3:]] == [Flow.NEXT, Flow.RETURN]


def test_bytes_that_are_no_instruction() -> None:
    assert [(one.size, one.flow) for one in Decoder("amd64").iter_instructions(b"\x06\x90", 0)] == [
        (1, Flow.TRAP),
        (1, Flow.NEXT),
    ]
    decoded = list(Decoder("arm64").iter_instructions(b"\xff\xff\xff\xff\x1f\x20\x03\xd5\0", 0x100))
    assert [(one.address, one.size, one.flow) for one in decoded] == [
        (0x100, 4, Flow.TRAP),
        (0x104, 4, Flow.NEXT),
        (0x108, 1, Flow.TRAP),
    ]
    assert Decoder("amd64").decode(b"", 7).flow is Flow.TRAP
