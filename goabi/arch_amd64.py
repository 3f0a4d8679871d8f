"""amd64 as Go uses it."""

from goabi.arch import Arch

AMD64 = Arch(
    name="amd64",
    pc_quantum=1,
    uses_lr=False,
    min_frame_bytes=0,
    stack_align_bytes=8,
    pc="rip",
    sp="rsp",
    fp="rbp",
    lr=None,
    g="r14",
    context_register="rdx",
    integer_registers=("rax", "rbx", "rcx", "rdi", "rsi", "r8", "r9", "r10", "r11"),
    float_registers=tuple(f"xmm{number}" for number in range(15)),
    dwarf_registers=(
        *("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"),
        *(f"r{number}" for number in range(8, 16)),
        "rip",
        *(f"xmm{number}" for number in range(16)),
    ),
    relative_relocation=8,  # R_X86_64_RELATIVE
)
