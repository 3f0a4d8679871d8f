"""Lets Unicorn 2.1 be stopped from another thread without harm, and run faster: machine code for its host.

Code that Unicorn makes asks after every memory access, and once at the start of each block, whether it should
stop. Stopped after an access, it comes back to the beginning of the instruction, although a part of it has been
done: an `xchg` or `ldr x0, [x0]` is done twice. So a program may only be stopped at the start of a block. Unicorn
itself can leave out all but those questions (`no_exit_request`, which it uses for 32-bit ARM), which also makes
programs a third faster; but offers no way to say so. The offset of that switch is read from the function that asks
it. Without the questions, an access that fails in a store would run on to the block's end; `FAULT` leaves the block
at once instead.

The code here is for x86-64 hosts. Where it does not fit (another host, another build of Unicorn: the pattern is
not found), `find_switch` returns None, and the processor must do without: slower, but right.

Source: qemu/tcg/tcg-op.c, qemu/accel/tcg/{tcg-runtime,cputlb,translator}.c of Unicorn 2.1.4.
"""

import ctypes
import mmap
import platform

_SEARCHED_BYTES = 32
#: cmpb $0, OFFSET(%rsi): the test of the switch.
_TEST = b"\x80\xbe"
#: A plausible offset within Unicorn's engine, which has some 16 KB.
_MAX_OFFSET = 1 << 14

#: A hook of failing accesses: asks CALLBACK, and unless that has dealt with it leaves the block by LEAVE(uc, 0).
_FAULT = (
    b"\x57"  # push rdi
    b"\x48\xb8CALLBACK"  # mov rax, CALLBACK
    b"\xff\xd0"  # call rax
    b"\x5f"  # pop rdi
    b"\x84\xc0"  # test al, al
    b"\x75\x0e"  # jnz out
    b"\x31\xf6"  # xor esi, esi
    b"\x48\xb8-LEAVE--"  # mov rax, LEAVE
    b"\xff\xe0"  # jmp rax
    b"\xc3"  # out: ret
)

#: A hook of blocks: takes the block's size from the budget, a 32-bit number, and calls STOP(uc) when it is used up.
_BUDGET = (
    b"\x29\x11"  # sub [rcx], edx
    b"\x78\x01"  # js over
    b"\xc3"  # ret
    b"\xc7\x01\xff\xff\xff\x7f"  # over: mov dword [rcx], 0x7fffffff
    b"\x48\xb8--STOP--"  # mov rax, STOP
    b"\xff\xe0"  # jmp rax
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

    def fault_hook(self, callback: int, leave: int) -> int:
        """Return the address of a hook that asks *callback*, and leaves the block by *leave* if that says no."""
        return self._put(_FAULT, {b"CALLBACK": callback, b"-LEAVE--": leave})

    def budget_hook(self, stop: int) -> int:
        """Return the address of a hook of blocks that counts down its data and then calls *stop*."""
        return self._put(_BUDGET, {b"--STOP--": stop})

    def _put(self, code: bytes, addresses: dict[bytes, int]) -> int:
        for name, address in addresses.items():
            code = code.replace(name, address.to_bytes(8, "little"))
        at = self._memory.tell()
        self._memory.write(code.ljust(-(-len(code) // 16) * 16, b"\xcc"))
        return self._address + at
