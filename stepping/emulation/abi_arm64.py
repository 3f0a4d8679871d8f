"""Linux on arm64: the frame of a signal.

    frame      = info[128] ucontext record
    ucontext   = flags:u64 link:u64 stack mask:u64 unused[120] pad[8] sigcontext
    stack      = sp:u64 flags:u32 pad:u32 size:u64
    sigcontext = fault_address:u64 x0..x30:u64[31] sp:u64 pc:u64 pstate:u64 pad[8] reserved[4096]
    reserved   = fpsimd end
    fpsimd     = magic:u32(46508001) size:u32(528) fpsr:u32 fpcr:u32 v0..v31[16 each]
    end        = 0:u32 0:u32
    record     = fp:u64 lr:u64, what the frame pointer leads to

Source: arch/arm64/include/uapi/asm/sigcontext.h, arch/arm64/kernel/signal.c.
"""

import struct

from stepping.emulation.abi import Abi
from stepping.emulation.address_space import AddressSpace
from stepping.emulation.registers import Context

_INFO_BYTES = 128
_HEAD = struct.Struct("<QQQIIQQ128x")  # uc_flags, uc_link, uc_stack, uc_sigmask with its spare room
_SIGCONTEXT_OFFSET = _INFO_BYTES + -(-_HEAD.size // 16) * 16
_MASK_OFFSET = _INFO_BYTES + 40
_GENERAL = struct.Struct("<Q34Q")  # the fault's address, then registers
_RESERVED_OFFSET = _SIGCONTEXT_OFFSET + -(-_GENERAL.size // 16) * 16
_RESERVED_BYTES = 4096
_FPSIMD_HEAD = struct.Struct("<IIII")
_FPSIMD_MAGIC, _FPSIMD_BYTES = 0x46508001, 528
_VECTOR_BYTES = 512
_FRAME_BYTES = _RESERVED_OFFSET + _RESERVED_BYTES
_LR, _FP, _SP = 30, 29, 31


class _Frame:
    def push(
        self,
        context: Context,
        space: AddressSpace,
        top: int,
        info: bytes,
        mask: int,
        stack: tuple[int, int, int],
        restorer: int,
        fault_address: int,
    ) -> int:
        """See `SignalFrame`."""
        general = context.read_general()
        record = (top - 16) & ~15
        sp = record - _FRAME_BYTES
        head = info + _HEAD.pack(0, 0, stack[0], stack[1], 0, stack[2], mask)
        vectors = _FPSIMD_HEAD.pack(_FPSIMD_MAGIC, _FPSIMD_BYTES, 0, 0) + context.read_vectors() + bytes(8)
        space.write(record, struct.pack("<QQ", general[_FP], general[_LR]))
        space.write(sp, head)
        space.write(sp + _SIGCONTEXT_OFFSET, _GENERAL.pack(fault_address, *general))
        space.write(sp + _RESERVED_OFFSET, vectors)
        general[0] = int.from_bytes(info[:4], "little")
        general[1] = sp
        general[2] = sp + _INFO_BYTES
        general[_FP] = record
        general[_LR] = restorer
        general[_SP] = sp
        context.write_general(general)
        return sp

    def pop(self, context: Context, space: AddressSpace) -> int:
        """See `SignalFrame`."""
        sp = context.sp
        (mask,) = struct.unpack("<Q", space.read(sp + _MASK_OFFSET, 8))
        general = list(_GENERAL.unpack(space.read(sp + _SIGCONTEXT_OFFSET, _GENERAL.size))[1:])
        (magic,) = struct.unpack("<I", space.read(sp + _RESERVED_OFFSET, 4))
        if magic == _FPSIMD_MAGIC:
            context.write_vectors(space.read(sp + _RESERVED_OFFSET + _FPSIMD_HEAD.size, _VECTOR_BYTES))
        context.write_general(general)
        return int(mask)


ARM64_ABI = Abi(
    arch="arm64",
    platform=b"aarch64",
    hwcap=0x1FB,  # fp asimd aes pmull sha1 sha2 crc32 atomics: what Unicorn's processor has and programs gain by
    syscall_bytes=4,
    sigreturn=bytes.fromhex("681180d2010000d4"),  # mov x8, 139; svc 0
    tls_argument=3,
    child_tid_argument=4,
    frame=_Frame(),
)
