"""Calls of sockets with a time limit (SO_RCVTIMEO, SO_SNDTIMEO), which a tracer's stop ends as a signal would.

The kernel does not make such a call again by itself, as it does with those that have no limit: it fails with EINTR,
though the program has no signal to see. Source: signal(7), "Interruption of system calls"; net/core/sock.h
(sock_intr_errno).
"""

import errno

from stepping.registers import AMD64
from stepping.syscalls import SYSCALLS
from stepping.tracee import Tracee

_CALLS = frozenset(
    SYSCALLS[name].numbers["amd64"]
    for name in "accept accept4 read readv recvfrom recvmsg recvmmsg write writev sendto sendmsg sendmmsg".split()
)
_SYSCALL_BYTES = 2
_NO_CALL = (1 << 64) - 1


def make_again(tracee: Tracee) -> bool:
    """Have a thread that a tracer has stopped make its call again if the stop has ended that; return whether it has.

    tracee: stopped by `Tracee.interrupt`, on x86-64. The time limit of the call begins anew.
    """
    registers = tracee.read_registers()
    if (
        registers.layout is not AMD64
        or registers["orig_rax"] not in _CALLS
        or registers.result != -errno.EINTR
    ):
        return False
    registers["rax"], registers["orig_rax"] = registers["orig_rax"], _NO_CALL
    registers.pc -= _SYSCALL_BYTES
    tracee.write_registers(registers)
    return True
