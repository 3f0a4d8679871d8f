"""Hides the vDSO from a program, so that reading a clock is a syscall like any other.

A program learns of the vDSO from its auxiliary vector, which lies above the environment on its first stack.
Source: elf.h (AT_*), getauxval(3), vdso(7).
"""

import os
import struct

from stepping.ptrace_api import detach
from stepping.tracee_memory import TraceeMemory

_AT_NULL, _AT_IGNORE, _AT_SYSINFO_EHDR = 0, 1, 33
_WORD = 8


def hide_vdso(pid: int) -> None:
    """Take the vDSO out of the auxiliary vector of *pid*, then let it run.

    pid: a child that asked to be traced (PTRACE_TRACEME) and stops, or has stopped, at its exec.

    Raises:
        TraceeGoneError: it was killed meanwhile.
    """
    _, status = os.waitpid(pid, 0)
    if os.WIFSTOPPED(status):
        take_vdso_out(pid)
        detach(pid)


def take_vdso_out(pid: int) -> None:
    """Take the vDSO out of the auxiliary vector of *pid*, which is stopped at its first instruction."""
    memory = TraceeMemory(pid)
    try:
        forget_vdso(memory, _stack_pointer(pid))
    finally:
        memory.close()


def forget_vdso(memory: TraceeMemory, stack_pointer: int) -> None:
    """Take the vDSO out of the auxiliary vector above *stack_pointer*, as it is when a program begins."""
    address = _after_null(memory, _after_null(memory, stack_pointer + _WORD))
    while True:
        kind = _word(memory, address)
        if kind == _AT_NULL:
            return
        if kind == _AT_SYSINFO_EHDR:
            memory.write(address, struct.pack("=Q", _AT_IGNORE))
        address += 2 * _WORD


def _stack_pointer(pid: int) -> int:
    """Return the stack pointer of a stopped thread, which at its exec points to argc."""
    with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
        return int(file.read().split()[-2], 16)


def _after_null(memory: TraceeMemory, address: int) -> int:
    """Return the address after the null pointer that ends the array at *address*."""
    while _word(memory, address):
        address += _WORD
    return address + _WORD


def _word(memory: TraceeMemory, address: int) -> int:
    return int(struct.unpack("=Q", memory.read(address, _WORD))[0])
