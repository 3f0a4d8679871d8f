"""The function that nearly all calls of a Go program for amd64 go through, as Go's assembler makes it: to the byte.

Source: internal/runtime/syscall/linux/asm_linux_amd64.s (Go 1.27), runtime/internal/syscall (Go 1.19 to 1.21).
"""

#: Syscall6 from its entry to the compare: four moves, syscall, cmp $-4095,%rax.
SIGNATURE = bytes.fromhex("4989f24889fa4889ce4889df0f05483d01f0ffff")
CALL_OFFSET = 12
AFTER_OFFSET = 14
