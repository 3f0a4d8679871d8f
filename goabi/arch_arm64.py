"""arm64 as Go uses it."""

from goabi.arch import Arch

ARM64 = Arch(
    name="arm64",
    pc_quantum=4,
    uses_lr=True,
    min_frame_bytes=8,
    stack_align_bytes=16,
    pc="pc",
    sp="sp",
    fp="x29",
    lr="x30",
    g="x28",
    context_register="x26",
    integer_registers=tuple(f"x{number}" for number in range(16)),
    float_registers=tuple(f"v{number}" for number in range(16)),
    dwarf_registers=(
        *(f"x{number}" for number in range(31)),
        "sp",
        *("",) * 32,
        *(f"v{number}" for number in range(32)),
    ),
    relative_relocation=1027,  # R_AARCH64_RELATIVE
)
