"""What a thread of an emulated program holds, in the layouts of ptrace(2), and what the program was started with.

Thread rules: those of the machine; a thread's state is what it was when it last gave up the processor.
"""

import contextlib
import struct

from stepping.emulation.address_space import AddressSpace
from stepping.emulation.threads import Thread
from stepping.errors import MemoryFaultError
from stepping.registers import RegisterLayout, Registers

#: `Context.read_general`'s order.
GENERAL_ORDERS = {
    "amd64": "r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags".split(),
    "arm64": [*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"],
}
_USER_SEGMENTS = {"cs": 0x33, "ss": 0x2B}

#: Where in an FXSAVE area the vectors are.
XMM_AT = 160
_FXSAVE_BYTES, _MXCSR_AT, _MXCSR, _FCW = 512, 24, 0x1F80, 0x37F
_FPSIMD = struct.Struct("<512sII8x")
_AUXV_ENTRY = struct.Struct("<QQ")


def read_registers(thread: Thread, layout: RegisterLayout) -> Registers:
    """Return the general registers."""
    context = thread.context
    values = dict(zip(GENERAL_ORDERS[layout.arch], context.read_general(), strict=True))
    registers = Registers(layout, [values.get(name, 0) for name in layout.names])
    if layout.arch == "amd64":
        for name, value in _USER_SEGMENTS.items():
            registers[name] = value
        registers["fs_base"] = context.get_tls()
        registers["orig_rax"] = (1 << 64) - 1
    return registers


def read_vectors(thread: Thread, layout: RegisterLayout) -> bytes:
    """Return the vector registers: an FXSAVE area on amd64, struct user_fpsimd_state on arm64."""
    vectors = thread.context.read_vectors()
    if layout.arch == "arm64":
        return _FPSIMD.pack(vectors, 0, 0)
    area = bytearray(_FXSAVE_BYTES)
    area[0:2] = _FCW.to_bytes(2, "little")
    area[_MXCSR_AT : _MXCSR_AT + 4] = _MXCSR.to_bytes(4, "little")
    area[XMM_AT : XMM_AT + len(vectors)] = vectors
    return bytes(area)


def find_auxv(space: AddressSpace, sp: int) -> bytes:
    """Return the auxiliary vector, which is behind arguments and environment. sp: the first stack pointer."""
    at = sp + 8 * (int.from_bytes(space.read(sp, 8), "little") + 2)
    while any(space.read(at, 8)):
        at += 8
    at += 8
    entries = b""
    with contextlib.suppress(MemoryFaultError):
        while True:
            entry = space.read(at, _AUXV_ENTRY.size)
            entries += entry
            at += _AUXV_ENTRY.size
            if not any(entry[:8]):
                break
    return entries
