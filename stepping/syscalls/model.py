"""The vocabulary of the syscall table: what a syscall is, and what each of its arguments means.

A row of the table (see `table.py`) is one line:

    name  amd64  arm64  class  wait  argument... -> result   [only NAME&MASK=VALUE]

    amd64, arm64  the number on that architecture, or `-` where it does not exist
    class         one of `SyscallClass`
    wait          `wait` if the call may sleep without bound, else `-`
    argument      NAME:KIND[LENGTH;VALID]/DECODER
                  KIND     one of `ArgKind`
                  LENGTH   how many bytes a buffer has: a number, an argument's name, `NAME*NUMBER`,
                           or `*NAME` (the 32-bit number that the argument NAME points to);
                           for iovecs: the argument that counts them
                  VALID    how much of an out-buffer a successful call has filled (default: all):
                           `ret`, `ret*NUMBER`, or `*NAME` (what NAME points to after the call)
                  DECODER  the name under which the decoders know how to print it (default: by kind)
    result        `int`, `fd`, `bytes`, `ptr`, `none`
    only          the call concerns a resource only when (argument & MASK) == VALUE
                  (mmap of a file, clone of a process); otherwise it is a matter of memory or threads

This package is the only place that knows these facts: the filter, the marshalling, the shadow, the trace
decoders and the documentation all read it.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Literal, NewType

Arch = Literal["amd64", "arm64"]
Sysno = NewType("Sysno", int)


class SyscallClass(Enum):
    """What a syscall is about; decides who may answer it."""

    FILE = "file"  #: names, files, directories, descriptors, pipes, events
    NET = "net"  #: sockets
    PROCESS = "process"  #: children: fork, exec, wait, kill
    IDENTITY = "identity"  #: ids, groups, host name, limits, sessions
    SYSTEM = "system"  #: the machine: mounts, modules, accounting, keys
    MEMORY = "memory"  #: the address space
    THREAD = "thread"  #: threads, futexes, scheduling
    SIGNAL = "signal"  #: handlers, masks, stacks
    TIME = "time"  #: clocks and sleeping

    @property
    def is_resource(self) -> bool:
        """Whether calls of this class reach outside the program and so belong to the server."""
        return self not in _OWN_CLASSES


_OWN_CLASSES = frozenset({SyscallClass.MEMORY, SyscallClass.THREAD, SyscallClass.SIGNAL, SyscallClass.TIME})


class ArgKind(Enum):
    """How an argument is carried from the program to whoever executes the call, and back."""

    INT = "int"  #: signed 32-bit number
    UINT = "uint"  #: unsigned 32-bit number
    LONG = "long"  #: signed 64-bit number
    SIZE = "size"  #: unsigned 64-bit number
    PTR = "ptr"  #: an address that nobody follows
    FD = "fd"  #: a file descriptor
    DIRFD = "dirfd"  #: a file descriptor or AT_FDCWD
    PATH = "path"  #: NUL-terminated file name, read from the program
    STR = "str"  #: any other NUL-terminated string, read from the program
    STRV = "strv"  #: NULL-terminated array of strings, read from the program
    IN = "in"  #: buffer read from the program
    OUT = "out"  #: buffer written to the program
    INOUT = "inout"  #: buffer read, then written
    IOV_IN = "iovin"  #: array of struct iovec whose buffers are read
    IOV_OUT = "iovout"  #: array of struct iovec whose buffers are written
    MSG_IN = "msgin"  #: struct msghdr that is sent
    MSG_OUT = "msgout"  #: struct msghdr that is received into
    REQUEST_ARG = "reqarg"  #: ioctl's and fcntl's third argument; its meaning depends on the second

    @property
    def is_pointer(self) -> bool:
        """Whether the register holds an address in the program's memory."""
        return self not in _SCALARS


_SCALARS = frozenset({ArgKind.INT, ArgKind.UINT, ArgKind.LONG, ArgKind.SIZE, ArgKind.FD, ArgKind.DIRFD})


class ResultKind(Enum):
    """What a successful call returns."""

    INT = "int"
    FD = "fd"
    BYTES = "bytes"
    PTR = "ptr"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Length:
    """A size in bytes (or a number of iovecs): ``arg * scale``, or the constant ``scale``.

    arg: index of the argument that it depends on, `RESULT` for the call's result, None for a constant.
    indirect: the argument is a pointer to a 32-bit number that holds the size.
    """

    arg: int | None
    scale: int = 1
    indirect: bool = False


#: `Length.arg` that stands for the result of the call.
RESULT = -1


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument of a syscall."""

    name: str
    kind: ArgKind
    length: Length | None = None
    valid: Length | None = None
    decoder: str = ""


@dataclass(frozen=True, slots=True)
class OnlyIf:
    """The call concerns a resource only when ``args[arg] & mask == value``."""

    arg: int
    mask: int
    value: int


@dataclass(frozen=True, slots=True)
class Syscall:
    """One row of the table. `numbers` maps an architecture to the call's number there."""

    name: str
    numbers: dict[Arch, Sysno]
    klass: SyscallClass
    may_wait: bool
    args: tuple[Arg, ...]
    result: ResultKind
    only_if: OnlyIf | None = None
