"""What this package needs to know of a processor architecture, as data.

Register names are those of the kernel's `user_regs_struct` (amd64) and of the architecture manual (arm64).
Source: runtime/stubs_*.go, internal/runtime/sys/consts.go, cmd/compile/abi-internal.md (Go 1.21 to 1.27).
"""

from typing import NamedTuple

from goabi.elf_header import ArchName


class Arch(NamedTuple):
    """One architecture. Sizes in bytes.

    `uses_lr`: a call puts the return address into a register, not on the stack. `min_frame_bytes`: what a
    frame keeps below its callee's arguments. `pc_quantum`: length of the shortest instruction.
    `integer_registers`, `float_registers`: ABIInternal's, in order of assignment. `dwarf_registers`: by number.
    `context_register` holds the closure on entry to a function.
    """

    name: ArchName
    pc_quantum: int
    uses_lr: bool
    min_frame_bytes: int
    stack_align_bytes: int
    pc: str
    sp: str
    fp: str
    lr: str | None
    g: str
    context_register: str
    integer_registers: tuple[str, ...]
    float_registers: tuple[str, ...]
    dwarf_registers: tuple[str, ...]
    relative_relocation: int
    pointer_bytes: int = 8
