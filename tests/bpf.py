"""A classic BPF machine for the few instructions that seccomp filters are made of, written from linux/filter.h.

It is independent of the assembler that it is used to check: it takes the bytes that the kernel would take.
"""

import struct
from collections.abc import Sequence

_CLASS, _MODE, _SIZE, _OP, _SOURCE = 0x07, 0xE0, 0x18, 0xF0, 0x08
_LD, _ALU, _JMP, _RET = 0x00, 0x04, 0x05, 0x06


class BpfError(Exception):
    """The kernel would not accept the program."""


def seccomp_data(nr: int, arch: int, ip: int, args: Sequence[int]) -> bytes:
    """Return a struct seccomp_data, 64 bytes."""
    return struct.pack("<iIQ6Q", nr - (nr >> 31 << 32), arch, ip, *args)


def run(program: bytes, data: bytes) -> int:
    """Return what the filter returns for *data*. Raises: BpfError for what seccomp's checker would refuse."""
    if not program or len(program) % 8 or len(program) > 8 * 4096:
        raise BpfError("bad program size")
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator, at = 0, 0
    while True:
        if at >= len(code):
            raise BpfError("ran off the end")
        op, if_true, if_false, k = code[at]
        at += 1
        if op & _CLASS == _LD:
            if op & (_MODE | _SIZE) != 0x20 or k % 4 or k > len(data) - 4:
                raise BpfError(f"bad load {op:#x} from {k}")
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif op & _CLASS == _ALU:
            if op != 0x54:
                raise BpfError(f"unexpected arithmetic {op:#x}")
            accumulator &= k
        elif op & _CLASS == _JMP:
            match op & _OP:
                case 0x00:
                    at += k
                    continue
                case 0x10:
                    taken = accumulator == k
                case 0x20:
                    taken = accumulator > k
                case 0x30:
                    taken = accumulator >= k
                case _:
                    raise BpfError(f"unexpected jump {op:#x}")
            at += if_true if taken else if_false
        elif op & _CLASS == _RET:
            return int(k)
        else:
            raise BpfError(f"unexpected instruction {op:#x}")
