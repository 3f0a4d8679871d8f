"""sendmsg(2) and recvmsg(2) of an emulated program, whose messages lead from pointer to pointer.

The program's memory lies in this process, so the kernel may use it in place: the header and the vector are copied
with addresses that hold here, once each has been checked against what the program may touch.

    msghdr = name:u64 namelen:u32 pad:u32 iov:u64 iovlen:u64 control:u64 controllen:u64 flags:i32 pad:u32
    iovec  = base:u64 len:u64

Source: recvmsg(2), include/linux/socket.h. Both architectures have the same layout.
Thread rules: any thread; the program's memory must stay mapped meanwhile.
"""

import ctypes
import errno
import struct

from stepping.emulation.address_space import PROT_READ, PROT_WRITE, AddressSpace
from stepping.errors import MemoryFaultError

_HEADER = struct.Struct("<QI4xQQQQi4x")
_VECTOR = struct.Struct("<QQ")
_MAX_VECTOR = 1024  # UIO_MAXIOV

_libc = ctypes.CDLL(None, use_errno=True)
_sendmsg, _recvmsg = _libc.sendmsg, _libc.recvmsg
for _function in (_sendmsg, _recvmsg):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]


def send_message(space: AddressSpace, fd: int, header: int, flags: int) -> int:
    """Carry out sendmsg(2) for the msghdr at address *header*; return the kernel's result, or minus an errno."""
    return _call(_sendmsg, space, fd, header, flags, PROT_READ)


def receive_message(space: AddressSpace, fd: int, header: int, flags: int) -> int:
    """Carry out recvmsg(2) for the msghdr at address *header*; return the kernel's result, or minus an errno."""
    return _call(_recvmsg, space, fd, header, flags, PROT_WRITE)


def _call(
    function: "ctypes._NamedFuncPointer", space: AddressSpace, fd: int, header: int, flags: int, needed: int
) -> int:
    try:
        fields = _HEADER.unpack(space.read(header, _HEADER.size))
        name, name_bytes, iov, iov_count, control, control_bytes, _ = fields
        if iov_count > _MAX_VECTOR:
            return -errno.EMSGSIZE
        vector = b"".join(
            _VECTOR.pack(_here(space, base, size, needed), size)
            for base, size in _VECTOR.iter_unpack(space.read(iov, iov_count * _VECTOR.size))
        )
        here = ctypes.create_string_buffer(vector, max(len(vector), 1))
        message = ctypes.create_string_buffer(
            _HEADER.pack(
                _here(space, name, name_bytes, needed),
                name_bytes,
                ctypes.addressof(here),
                iov_count,
                _here(space, control, control_bytes, needed),
                control_bytes,
                0,
            ),
            _HEADER.size,
        )
        result: int = function(fd, message, flags)
        if result < 0:
            return -ctypes.get_errno()
        if needed == PROT_WRITE:
            _, name_bytes, _, _, _, control_bytes, seen = _HEADER.unpack(message.raw)
            filled = _HEADER.pack(name, name_bytes, iov, iov_count, control, control_bytes, seen)
            space.write(header, filled)
        return result
    except MemoryFaultError:
        return -errno.EFAULT


def _here(space: AddressSpace, address: int, size: int, needed: int) -> int:
    if not address or not size:
        return 0
    if not space.allows(address, size, needed):
        raise MemoryFaultError(address)
    return space.base + address
