"""A thread's general registers, by the kernel's own names, and which of them carry a syscall.

Layouts are data: `AMD64` is struct user_regs_struct, `ARM64` struct user_pt_regs. All values are unsigned
64-bit, little-endian.

Source: arch/x86/include/asm/user_64.h, arch/arm64/include/uapi/asm/ptrace.h, syscall(2).
"""

import struct
from dataclasses import dataclass, field

from stepping.errors import SteppingError
from stepping.syscalls.model import Arch

_U64 = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class RegisterLayout:
    """Names in the kernel's order, and the roles: program counter, stack and frame pointer, Go's g, syscalls.

    pending: the register that makes the kernel restart an interrupted call while it is not -1, if there is one.
    syscall_instruction, breakpoint_instruction: their encodings; breakpoint_advance: how far beyond a breakpoint
    the program counter is when it has been hit.
    """

    arch: Arch
    names: tuple[str, ...]
    pc: str
    sp: str
    bp: str
    g: str
    sysno: str
    args: tuple[str, ...]
    result: str
    pending: str | None
    syscall_instruction: bytes
    breakpoint_instruction: bytes
    breakpoint_advance: int
    index: dict[str, int] = field(init=False)
    codec: struct.Struct = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {name: i for i, name in enumerate(self.names)})
        object.__setattr__(self, "codec", struct.Struct(f"<{len(self.names)}Q"))

    def offset_of(self, name: str) -> int:
        """Return where a register is in the kernel's struct user, in bytes."""
        return 8 * self.index[name]


AMD64 = RegisterLayout(
    arch="amd64",
    names=(
        *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9"),
        *("r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs"),
        *("eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
    ),
    pc="rip",
    sp="rsp",
    bp="rbp",
    g="r14",
    sysno="rax",
    args=("rdi", "rsi", "rdx", "r10", "r8", "r9"),
    result="rax",
    pending="orig_rax",
    syscall_instruction=b"\x0f\x05",
    breakpoint_instruction=b"\xcc",
    breakpoint_advance=1,
)

ARM64 = RegisterLayout(
    arch="arm64",
    names=(*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"),
    pc="pc",
    sp="sp",
    bp="x29",
    g="x28",
    sysno="x8",
    args=("x0", "x1", "x2", "x3", "x4", "x5"),
    result="x0",
    pending=None,
    syscall_instruction=b"\x01\x00\x00\xd4",
    breakpoint_instruction=b"\x00\x00\x20\xd4",
    breakpoint_advance=0,
)

LAYOUTS = {"amd64": AMD64, "arm64": ARM64}
NATIVE = {"x86_64": AMD64, "aarch64": ARM64}


class Registers:
    """The registers of one stop, as a mapping by name; changes reach the thread when they are written back."""

    __slots__ = ("_values", "layout")

    def __init__(self, layout: RegisterLayout, values: list[int]) -> None:
        self.layout = layout
        self._values = values

    @classmethod
    def decode(cls, layout: RegisterLayout, raw: bytes) -> "Registers":
        """Return the registers that *raw*, a general register set, holds.

        Raises:
            SteppingError: it is of another size, so of another architecture (a 32-bit program).
        """
        if len(raw) != layout.codec.size:
            raise SteppingError(
                f"a register set of {len(raw)} bytes, where {layout.arch} has {layout.codec.size}: "
                "32-bit programs are not supported"
            )
        return cls(layout, list(layout.codec.unpack(raw)))

    def encode(self) -> bytes:
        """Return the register set in the kernel's layout."""
        return self.layout.codec.pack(*self._values)

    def copy(self) -> "Registers":
        """Return registers that can be changed without changing these."""
        return Registers(self.layout, list(self._values))

    def __getitem__(self, name: str) -> int:
        return self._values[self.layout.index[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._values[self.layout.index[name]] = value & _U64

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Registers) and other.layout is self.layout and other._values == self._values

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = " ".join(
            f"{name}={value:#x}" for name, value in zip(self.layout.names, self._values, strict=True)
        )
        return f"<Registers {self.layout.arch} {shown}>"

    def values(self) -> list[int]:
        """Return the numbers themselves, in the layout's order; changes are changes of these registers."""
        return self._values

    def as_dict(self) -> dict[str, int]:
        """Return all registers by name."""
        return dict(zip(self.layout.names, self._values, strict=True))

    @property
    def pc(self) -> int:
        """The address of the next instruction."""
        return self[self.layout.pc]

    @pc.setter
    def pc(self, value: int) -> None:
        self[self.layout.pc] = value

    @property
    def sp(self) -> int:
        """The stack pointer."""
        return self[self.layout.sp]

    @sp.setter
    def sp(self, value: int) -> None:
        self[self.layout.sp] = value

    @property
    def bp(self) -> int:
        """The frame pointer."""
        return self[self.layout.bp]

    @property
    def g(self) -> int:
        """The register that holds the address of the current g while Go code runs."""
        return self[self.layout.g]

    @property
    def result(self) -> int:
        """What a syscall just returned, signed: a value, or a negated errno from -4095 to -1."""
        value = self[self.layout.result]
        return value - (1 << 64) if value >> 63 else value

    def prepare_syscall(self, instruction: int, sysno: int, args: tuple[int, ...]) -> None:
        """Set up for call *sysno* by the syscall instruction at address *instruction*; missing args are 0."""
        layout = self.layout
        if layout.pending is not None:
            self[layout.pending] = _U64
        for name, value in zip(layout.args, (*args, 0, 0, 0, 0, 0, 0), strict=False):
            self[name] = value
        self[layout.sysno] = sysno
        self[layout.pc] = instruction
