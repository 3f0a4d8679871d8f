"""What makes Unicorn 2.1 fast, and safe to stop from another thread: a switch of its own, and hooks in machine code.

Stopping. Code that Unicorn makes asks after every memory access, and once at the start of each block, whether it
should stop. Stopped after an access, it comes back to the beginning of the instruction, although a part of it has
been done: an `xchg` or `ldr x0, [x0]` is done twice. So a program may only be stopped at the start of a block.
Unicorn itself can leave out all but those questions (`no_exit_request`, which it uses for 32-bit ARM), which also
makes programs a third faster, but offers no way to say so. The offset of that switch is read from the function that
asks it.

Memory. Unicorn is told which page may be touched how by a hook that it asks whenever its own cache does not know
(UC_HOOK_TLB_FILL). The answers are in a table with a byte per page, and the hook is a dozen instructions. So
protection is exact, nothing is called for what is cached, and stores are not slowed down as they are when Unicorn
looks after memory itself: it takes every page for code then, and checks each store.

The machine code here is for x86-64 hosts. Where it does not fit (another host, or another build of Unicorn: the
pattern is not found), Python functions do the same: slower, but right.

Source: qemu/tcg/tcg-op.c, qemu/accel/tcg/{tcg-runtime,cputlb,translator}.c, qemu/softmmu/unicorn_vtlb.c of
Unicorn 2.1.4.
"""

import ctypes
import mmap
import platform

_SEARCHED_BYTES = 32
#: cmpb $0, OFFSET(%rsi): the test of the switch.
_TEST = b"\x80\xbe"
#: Unicorn's engine has some 15 KB.
_MAX_OFFSET = 0x3800

#: A hook of blocks: takes the block's size from the budget, a 32-bit number, and calls STOP(uc) when it is used up.
_BUDGET = (
    b"\x29\x11"  # sub [rcx], edx
    b"\x78\x01"  # js over
    b"\xc3"  # ret
    b"\xc7\x01\xff\xff\xff\x7f"  # over: mov dword [rcx], 0x7fffffff
    b"\x48\xb8--STOP--"  # mov rax, STOP
    b"\xff\xe0"  # jmp rax
)

#: A hook of cache misses: rsi is the address of the page, edx 16 to read, 17 to write, 18 to execute; [rcx] takes
#: the page's physical address, then what may be done there; [r8] takes what was wanted and refused.
_FILL = (
    b"\x48\x89\xf0"  # mov rax, rsi
    b"\x48\xc1\xe8\x0c"  # shr rax, 12
    b"\x49\x89\xc1"  # mov r9, rax
    b"\x49\xc1\xe9\x20"  # shr r9, 32
    b"\x75\x23"  # jnz refuse
    b"\x49\xb9-TABLE--"  # mov r9, TABLE
    b"\x41\x0f\xb6\x04\x01"  # movzx eax, byte [r9 + rax]
    b"\x83\xea\x10"  # sub edx, 16
    b"\x0f\xa3\xd0"  # bt eax, edx
    b"\x73\x0f"  # jnc refused
    b"\x48\x89\x31"  # mov [rcx], rsi
    b"\x89\x41\x08"  # mov [rcx + 8], eax
    b"\xb8\x01\x00\x00\x00"  # mov eax, 1
    b"\xc3"  # ret
    b"\x83\xea\x10"  # refuse: sub edx, 16
    b"\x41\x89\x10"  # refused: mov [r8], edx
    b"\x31\xc0"  # xor eax, eax
    b"\xc3"  # ret
)


def find_switch(function: int) -> int | None:
    """Return the offset of `no_exit_request` in Unicorn's engine, from the code of check_exit_request at *function*.

    None: this is not the code that was expected.
    """
    if platform.machine() != "x86_64":
        return None
    code = ctypes.string_at(function, _SEARCHED_BYTES)
    at = code.find(_TEST)
    if at < 0 or at + 7 > len(code) or code[at + 6]:
        return None
    offset = int.from_bytes(code[at + 2 : at + 6], "little")
    return offset if 0 < offset < _MAX_OFFSET else None


class HostCode:
    """Machine code of the processor's own making. Addresses are valid as long as this object is."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def budget_hook(self, stop: int) -> int:
        """Return the address of a hook of blocks that counts down its data and then calls *stop*."""
        return self._put(_BUDGET.replace(b"--STOP--", stop.to_bytes(8, "little")))

    def fill_hook(self, table: int) -> int:
        """Return the address of a hook of cache misses that allows what the *table* says, by page."""
        return self._put(_FILL.replace(b"-TABLE--", table.to_bytes(8, "little")))

    def _put(self, code: bytes) -> int:
        at = self._memory.tell()
        self._memory.write(code.ljust(-(-len(code) // 16) * 16, b"\xcc"))
        return self._address + at
