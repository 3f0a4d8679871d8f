"""The two makes of processor as Unicorn has them, as data: names of registers, numbers of exceptions.

The order of the general registers is that of the architecture's `struct sigcontext`, so that a signal's frame can be
written as it stands. Exception numbers: target/arm/cpu.h of QEMU 5, and Intel's for amd64.
"""

from dataclasses import dataclass

from stepping.syscalls.model import Arch


@dataclass(frozen=True, slots=True)
class Make:
    """One make.

    constants: the module of Unicorn's numbers; prefix: what their names begin with; suffix: what the names of its
    functions for this make end with; engine: architecture and mode; model: the processor. call: the registers
    of a syscall, its number and six arguments. breakpoints, arithmetic, aborts: exceptions; syscall: that
    of a syscall, -1 if those are no exceptions.
    """

    constants: str
    prefix: str
    suffix: str
    engine: tuple[str, str]
    model: str
    pc: str
    sp: str
    tls: str
    result: str
    call: str
    general: str
    vectors: str
    breakpoints: frozenset[int]
    arithmetic: frozenset[int]
    syscall: int
    load: bytes


MAKES: dict[Arch, Make] = {
    "amd64": Make(
        constants="x86_const",
        prefix="UC_X86_REG_",
        suffix="_x86_64",
        engine=("UC_ARCH_X86", "UC_MODE_64"),
        # Of what its namesake has, its CPUID offers just what Unicorn can do: no AVX, but SSE4.2, POPCNT, AES and
        # BMI2. Models older than XSAVE come without SSE switched on.
        model="UC_CPU_X86_HASWELL",
        pc="RIP",
        sp="RSP",
        tls="FS_BASE",
        result="RAX",
        call="RAX RDI RSI RDX R10 R8 R9",
        general="R8 R9 R10 R11 R12 R13 R14 R15 RDI RSI RBP RBX RDX RAX RCX RSP RIP RFLAGS",
        vectors=" ".join(f"XMM{i}" for i in range(16)),
        breakpoints=frozenset({1, 3}),
        arithmetic=frozenset({0}),
        syscall=-1,
        load=bytes.fromhex("488b03"),  # mov rax, [rbx]
    ),
    "arm64": Make(
        constants="arm64_const",
        prefix="UC_ARM64_REG_",
        suffix="_aarch64",
        engine=("UC_ARCH_ARM64", "UC_MODE_ARM"),
        model="UC_CPU_ARM64_MAX",  # with the atomic instructions of ARMv8.1
        pc="PC",
        sp="SP",
        tls="TPIDR_EL0",
        result="X0",
        call="X8 X0 X1 X2 X3 X4 X5",
        general=" ".join(f"X{i}" for i in range(31)) + " SP PC NZCV",
        vectors=" ".join(f"Q{i}" for i in range(32)),
        breakpoints=frozenset({7}),
        arithmetic=frozenset(),
        syscall=2,
        load=bytes.fromhex("200040f9"),  # ldr x0, [x1]
    ),
}
