"""Linux on amd64: the frame of a signal.

    frame    = return_address:u64 ucontext info[128] gap fpstate
    ucontext = flags:u64 link:u64 stack sigcontext mask:u64
    stack    = sp:u64 flags:u32 pad:u32 size:u64
    sigcontext = r8..r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags (u64 each)
               cs:u16 gs:u16 fs:u16 ss:u16 err:u64 trapno:u64 oldmask:u64 cr2:u64 fpstate:u64 reserved:u64[8]
    fpstate  = fxsave's 512 bytes, 16-aligned: xmm0..xmm15 at byte 160

Source: arch/x86/include/uapi/asm/sigcontext.h, arch/x86/kernel/signal_64.c.
"""

import struct

from stepping.emulation.abi import Abi
from stepping.emulation.address_space import AddressSpace
from stepping.emulation.registers import Context

_HEAD = struct.Struct("<QQQQIIQ")  # return address, uc_flags, uc_link, uc_stack
_GENERAL = struct.Struct("<18Q")
_TAIL = struct.Struct("<HHHHQQQQQ8QQ")  # segments to the mask
_UCONTEXT_OFFSET = 8
_GENERAL_OFFSET = _HEAD.size
_TAIL_OFFSET = _GENERAL_OFFSET + _GENERAL.size
_INFO_OFFSET = _TAIL_OFFSET + _TAIL.size
_FRAME_BYTES = _INFO_OFFSET + 128
_FPSTATE_BYTES = 512
_XMM_OFFSET, _XMM_BYTES = 160, 256
_RED_ZONE_BYTES = 128
_USER_CS, _USER_SS = 0x33, 0x2B
_MXCSR_OFFSET, _MXCSR = 24, 0x1F80
_RDI, _RSI, _RDX, _RAX, _RSP = 8, 9, 12, 13, 15
_FLAGS_DF_RF_TF = 0x10500


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
        fpstate = (top - _RED_ZONE_BYTES - _FPSTATE_BYTES) & ~63
        sp = ((fpstate - _FRAME_BYTES) & ~15) - 8
        saved = bytearray(_FPSTATE_BYTES)
        struct.pack_into("<HH", saved, 0, 0x37F, 0)
        struct.pack_into("<II", saved, _MXCSR_OFFSET, _MXCSR, 0xFFFF)
        saved[_XMM_OFFSET : _XMM_OFFSET + _XMM_BYTES] = context.read_vectors()
        frame = (
            _HEAD.pack(restorer, 0, 0, stack[0], stack[1], 0, stack[2])
            + _GENERAL.pack(*general)
            + _TAIL.pack(
                _USER_CS,
                0,
                0,
                _USER_SS,
                0,
                14 if fault_address else 0,
                mask,
                fault_address,
                fpstate,
                *[0] * 8,
                mask,
            )
            + info
        )
        space.write(fpstate, bytes(saved))
        space.write(sp, frame)
        general[_RSP] = sp
        general[_RDI] = int.from_bytes(info[:4], "little")
        general[_RSI] = sp + _INFO_OFFSET
        general[_RDX] = sp + _UCONTEXT_OFFSET
        general[_RAX] = 0
        general[17] &= ~_FLAGS_DF_RF_TF
        context.write_general(general)
        return sp

    def pop(self, context: Context, space: AddressSpace) -> int:
        """See `SignalFrame`."""
        frame = context.sp - 8  # the handler's return took the return address
        general = list(_GENERAL.unpack(space.read(frame + _GENERAL_OFFSET, _GENERAL.size)))
        tail = _TAIL.unpack(space.read(frame + _TAIL_OFFSET, _TAIL.size))
        fpstate, mask = tail[8], tail[-1]
        if fpstate:
            context.write_vectors(space.read(fpstate + _XMM_OFFSET, _XMM_BYTES))
        context.write_general(general)
        return int(mask)


AMD64_ABI = Abi(
    arch="amd64",
    platform=b"x86_64",
    hwcap=0x078BFBFD,  # CPUID 1's edx
    syscall_bytes=2,
    sigreturn=bytes.fromhex("b80f0000000f05"),  # mov eax, 15; syscall
    tls_argument=4,
    child_tid_argument=3,
    frame=_Frame(),
)
