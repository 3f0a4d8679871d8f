"""The syscall table (`table`), its vocabulary (`model`), marshalling (`marshal`) and decoders."""

from stepping.syscalls.model import (
    Arch,
    Arg,
    ArgKind,
    Length,
    OnlyIf,
    ResultKind,
    Syscall,
    SyscallClass,
    Sysno,
)
from stepping.syscalls.table import SYSCALLS, by_number

__all__ = [
    "SYSCALLS",
    "Arch",
    "Arg",
    "ArgKind",
    "Length",
    "OnlyIf",
    "ResultKind",
    "Syscall",
    "SyscallClass",
    "Sysno",
    "by_number",
]
