"""The function that nearly all calls of a Go program for amd64 go through, as Go's assembler makes it: to the byte.

Source: internal/runtime/syscall/linux/asm_linux_amd64.s (Go 1.27), runtime/internal/syscall (Go 1.19 to 1.21).
"""

#: Syscall6 from its entry to the compare: four moves, syscall, cmp $-4095,%rax.
SIGNATURE = bytes.fromhex("4989f24889fa4889ce4889df0f05483d01f0ffff")
CALL_OFFSET = 12
AFTER_OFFSET = 14

#: The runtime's epollctl of Go before 1.21, which makes its call itself: four loads, the number, syscall, store, ret.
#: Source: runtime/sys_linux_amd64.s (Go 1.19).
EPOLLCTL = bytes.fromhex("8b7c24088b74240c8b5424104c8b542418b8e90000000f0589442420c3")
EPOLLCTL_NUMBER_OFFSET = 17
EPOLLCTL_CALL_OFFSET = 22
