"""The vocabulary of the syscall table: what a syscall is, and what each of its arguments means.

A row of the table (see `table.py`) is one line:

    name  amd64  arm64  class  wait  argument... -> result [bound] [only NAME&MASK=VALUE]

    amd64, arm64  the number on that architecture, or `-` where it does not exist
    class         one of `SyscallClass`
    wait          `wait` if the call may sleep without bound (for somebody else, not for a disk), else `-`
    argument      NAME:KIND[LENGTH;VALID]/DECODER
                  KIND     one of `ArgKind`
                  LENGTH   how many bytes a buffer has, known before the call (see below);
                           for arrays of iovec and mmsghdr: how many elements;
                           for `reqarg`: the argument that holds the request
                  VALID    how much of an out-buffer a successful call has filled, known after the call
                           (default: all of it); what exceeds LENGTH is cut
                  DECODER  the name under which the decoders know how to print it (default: by kind)
    LENGTH, VALID [NUMBER+]TERM, where TERM is
                  NUMBER           so many bytes
                  NAME             the argument NAME, or `ret`, the call's result
                  NAME*NUMBER      ... times a size
                  NAME/8           a set of NAME bits, in whole 64-bit words (fd_set)
                  *NAME[@OFFSET]   the unsigned 32-bit number that the pointer NAME points to
                                   (OFFSET bytes further); NAME may be the argument itself
                  A last `|NUMBER` gives the size on arm64 where it differs from that on amd64.
    result        `int`, `fd`, `bytes`, `ptr`, `none`
    bound         the call is about the caller's own memory or threads, or its arguments hold addresses that the
                  table does not describe: no other process can make it in the caller's stead by table alone
    only          the call concerns a resource only when (argument & MASK) == VALUE
                  (mmap of a file, clone of a process); otherwise it is a matter of memory or threads

What holds for every row: an address of 0 means that the argument is absent, whatever its kind. A count that is
negative as a 32-bit number means no bytes. A call that fails fills no `out` buffer; an `inout` buffer is carried
back whether or not the call succeeds, and written where it changed (poll's revents, ppoll's remaining time,
EOVERFLOW of name_to_handle_at).

This package is the only place that knows these facts: the filter, the marshalling, the shadow, the trace
decoders and the documentation all read it.
"""

from enum import Enum
from typing import Literal, NamedTuple, NewType

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
    HOST = "host"  #: the machine that executes: its processors, randomness, accounting

    @property
    def is_resource(self) -> bool:
        """Whether calls of this class reach outside the program and so belong to the server."""
        return self not in _OWN_CLASSES


_OWN_CLASSES = frozenset(
    {SyscallClass.MEMORY, SyscallClass.THREAD, SyscallClass.SIGNAL, SyscallClass.TIME, SyscallClass.HOST}
)


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
    MMSG_IN = "mmsgin"  #: array of struct mmsghdr that are sent
    MMSG_OUT = "mmsgout"  #: array of struct mmsghdr that are received into
    SIGSET_REF = "sigref"  #: pselect6's last: the address of {address, size} of a signal mask, which is read
    REQUEST_ARG = "reqarg"  #: number or pointer, depending on another argument: see `requests.py`

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


class Length(NamedTuple):
    """A size in bytes (or a number of elements): ``base + scale * V``, or the constant ``scale``.

    arg: index of the argument that V is, `RESULT` for the call's result, None for a constant.
    indirect: the argument is a pointer; V is the unsigned 32-bit number *offset* bytes after it.
    bits: V counts bits; it is rounded up to whole 64-bit words.
    scale_arm64: the scale on arm64, where it differs.
    """

    arg: int | None
    scale: int = 1
    indirect: bool = False
    base: int = 0
    offset: int = 0
    bits: bool = False
    scale_arm64: int | None = None

    def of(self, value: int = 1, arch: Arch = "amd64") -> int:
        """Return the size when V is *value* (any number for a constant); never negative."""
        if self.bits:
            value = (value + 63) // 64 * 8
        scale = self.scale if arch == "amd64" or self.scale_arm64 is None else self.scale_arm64
        if self.arg is None:
            return scale
        return max(self.base + scale * value, 0)


#: `Length.arg` that stands for the result of the call.
RESULT = -1


class Arg(NamedTuple):
    """One argument of a syscall."""

    name: str
    kind: ArgKind
    length: Length | None = None
    valid: Length | None = None
    decoder: str = ""


class OnlyIf(NamedTuple):
    """The call concerns a resource only when ``args[arg] & mask == value``."""

    arg: int
    mask: int
    value: int


class Syscall(NamedTuple):
    """One row of the table. `numbers` maps an architecture to the call's number there."""

    name: str
    numbers: dict[Arch, Sysno]
    klass: SyscallClass
    may_wait: bool
    args: tuple[Arg, ...]
    result: ResultKind
    bound: bool = False
    only_if: OnlyIf | None = None

    @property
    def concerns_host(self) -> bool:
        """Whether no call of this row reaches outside the program: it is about its own memory, threads, clocks."""
        return not self.klass.is_resource and self.only_if is None
