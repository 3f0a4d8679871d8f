"""The emulated processor over a thread: what it must leave to the real one, and registers that both agree on."""

import struct

import pytest

from stepping import ptrace_api
from stepping.emulate import EmulateExecutor
from stepping.executor import CannotExecute, CountUsedUp, Until
from stepping.native import NativeExecutor
from stepping.ptrace_api import RegisterSet
from tests.contract.executors import bench

ONE = Until(instructions=1)


@pytest.mark.parametrize(
    "code",
    [
        "c5 fe 6f 03",  # vmovdqu ymm0, [rbx]
        "c5 f8 28 c1",  # vmovaps xmm0, xmm1: without its prefix an SSE instruction, which is not the same
        "62 f1 7e 48 6f 03",  # vmovdqu32 zmm0, [rbx]
        "0f a2",  # cpuid
        "0f 31",  # rdtsc
        "0f 01 d0",  # xgetbv
        "dd 03",  # fld qword [rbx]
        "0f 6f 03",  # movq mm0, [rbx]
        "06",  # nothing in 64-bit mode
    ],
)
def test_what_only_the_processor_can_do_is_not_emulated(code: str) -> None:
    with bench(lambda group, breakpoints, memory: EmulateExecutor(breakpoints, memory), is_real=False) as b:
        b.memory.write(b.at("unknown"), bytes.fromhex(code) + b"\x90" * 8)
        b.goto("unknown")
        before = b.tracee.read_registers()
        result = b.executor.run(b.tracee, ONE)
        assert isinstance(result, CannotExecute)
        assert result.pc == b.at("unknown")
        assert result.code.startswith(bytes.fromhex(code))
        assert b.tracee.read_registers() == before


@pytest.mark.parametrize(
    "code",
    [
        "48 01 d8",  # add rax, rbx
        "48 11 d8",  # adc rax, rbx
        "48 29 c3",  # sub rbx, rax
        "48 0f b1 1d 00 01 00 00",  # cmpxchg
        "f0 48 0f c1 1d 00 01 00 00",  # lock xadd
        "48 87 1d 00 01 00 00",  # xchg
        "48 0f af c3",  # imul rax, rbx
        "c4 e2 e3 f7 c3",  # shrx rax, rbx, rbx
        "f3 48 0f b8 c3",  # popcnt rax, rbx
        "48 0f ba 2d 00 01 00 00 05",  # bts
        "f2 0f 58 c1",  # addsd xmm0, xmm1
        "66 0f 6f 05 00 01 00 00",  # movdqa xmm0
        "66 0f ef c1",  # pxor xmm0, xmm1
        "0f 11 0d 00 01 00 00",  # movups, xmm1 to memory
        "f2 48 0f 2c c1",  # cvttsd2si rax, xmm1
        "66 0f 38 00 c1",  # pshufb
        "53",  # push rbx
        "64 48 8b 04 25 00 00 00 00",  # mov rax, fs:[0]
    ],
)
def test_both_processors_do_the_same(code: str) -> None:
    """The code is run at a page of its own kind: 256 bytes behind it is data of the same, writable mapping."""
    with bench(lambda group, breakpoints, memory: EmulateExecutor(breakpoints, memory), is_real=False) as b:
        native = NativeExecutor(b.group, b.breakpoints)
        at = b.at("unknown")
        stack = b.tracee.read_registers().sp - 256
        vectors = bytearray(ptrace_api.getregset(b.tracee.tid, RegisterSet.FLOAT))
        struct.pack_into("<4d", vectors, 160, 1.5, -7.25, 3.0e9, 4.0)
        outcomes = []
        for executor in (native, b.executor):
            b.memory.write(at, bytes.fromhex(code))
            b.memory.write(b.at("variable"), bytes(range(1, 65)))
            b.memory.write(stack, bytes(64))
            registers = b.tracee.read_registers()
            registers.pc, registers.sp = at, stack + 32
            registers["rax"], registers["rbx"] = 0xFFFF_FFFF_FFFF_FFF7, 0x1234_5678_9ABC_DEF3
            registers["rcx"], registers["eflags"] = 3, 0x203
            registers["fs_base"] = b.at("variable")
            registers["orig_rax"] = (1 << 64) - 1
            if b"\x00\x01\x00\x00" in bytes.fromhex(code):  # a displacement: let it lead to the variable
                start = bytes.fromhex(code).index(b"\x00\x01\x00\x00")
                size = len(bytes.fromhex(code))
                displacement = (b.at("variable") + 16 & ~15) - at - size
                b.memory.write(at + start, struct.pack("<i", displacement))
            b.tracee.write_registers(registers)
            ptrace_api.setregset(b.tracee.tid, bytes(vectors), RegisterSet.FLOAT)
            assert isinstance(executor.run(b.tracee, ONE), CountUsedUp)
            after = b.tracee.read_registers().as_dict()
            outcomes.append(
                (
                    {name: value for name, value in after.items() if name not in ("orig_rax", "eflags")},
                    after["eflags"] & defined_flags(code),
                    ptrace_api.getregset(b.tracee.tid, RegisterSet.FLOAT)[160:416],
                    b.memory.read(b.at("variable"), 64),
                    b.memory.read(stack, 64),
                )
            )
        assert outcomes[0] == outcomes[1]


def defined_flags(code: str) -> int:
    """The flags that the manual defines after an instruction: of imul and bts only the carry (and overflow)."""
    carry, overflow, all_six = 1, 0x800, 0x8D5
    return {"48 0f af": carry | overflow, "48 0f ba": carry}.get(code[:8], all_six)
