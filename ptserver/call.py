"""One call of the program, as a method of a runtime server sees it.

The call's arguments are attributes under the names that the syscall table gives them: in `openat`,
``call.dirfd`` is a number, ``call.path`` a str, ``call.flags`` a number; in `write`, ``call.buf`` is the
bytes that are written. Everything here is a copy made when the call was taken: the program cannot change
it afterwards, and changing it does nothing.

Not trusted: nothing here has been checked against the program's rights; a path is what the program said.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ptserver.outcomes import Done, Fail, OpenBytes, Outcome, Proceed, Return
from stepping.syscalls.model import Arg, ArgKind, Syscall

if TYPE_CHECKING:
    from ptserver.session import Session

Registers = tuple[int, int, int, int, int, int]

_MASK64 = (1 << 64) - 1
#: Stands for an address where a program gave none but a buffer was put by `Proceed.changes`.
_SOME_ADDRESS = 8


class Call:
    """A syscall that a thread of the program makes.

    session: the `Session` it belongs to; id: unique among the calls in flight; tid, pid: the calling thread
    and its process, as the stub host knows them; goid: the goroutine, if the server's `goroutines` asks for it and
    it is known, else 0; syscall: its row in the table; name: its name.
    args: its six registers, unsigned 64-bit. ins: by argument index, the bytes that it reads; outs: by
    argument index, how many bytes it may fill.

    Any other attribute is the argument of that name, see `argument`.
    """

    __slots__ = ("args", "goid", "id", "ins", "name", "outs", "pid", "session", "syscall", "tid")

    def __init__(
        self,
        session: "Session",
        id: int,
        tid: int,
        pid: int,
        syscall: Syscall,
        args: Registers,
        ins: dict[int, bytes],
        outs: dict[int, int],
        goid: int = 0,
    ) -> None:
        self.session = session
        self.goid = goid
        self.id = id
        self.tid = tid
        self.pid = pid
        self.syscall = syscall
        self.name = syscall.name
        self.args = args
        self.ins = ins
        self.outs = outs

    def __getattr__(self, name: str) -> Any:
        try:
            return self.argument(name)
        except KeyError:
            raise AttributeError(f"{self.name} has no argument {name!r}") from None

    def __repr__(self) -> str:
        words = ", ".join(f"{arg.name}={self.argument(arg.name)!r}" for arg in self.syscall.args)
        return f"<{self.name}({words}) by thread {self.tid}>"

    def argument(self, name: str) -> Any:
        """Return the argument *name*; needed only where `Call` has an attribute of that name (kill's pid).

        Numbers are ints with the sign that the call gives them. Paths and strings are str, decoded by
        `os.fsdecode`; string vectors are lists of them. In-buffers (and message headers) are bytes, all
        iovecs joined. Out-buffers are their size in bytes, a number. The third argument of ioctl and fcntl
        is bytes if the request reads it, a size if it only fills it, else a number. What points nowhere is
        None.

        Raises:
            KeyError: the call has no such argument.
        """
        index = index_of(self.syscall, name)
        return _value(self.syscall.args[index], index, self.args, self.ins, self.outs)

    def path_of(self, fd: int) -> str:
        """Return what the program's descriptor *fd* leads to: a path, or such as ``pipe:[81]``; empty if closed.

        The path is where the file was opened or has been moved to, with `` (deleted)`` behind it if it is gone.
        """
        process = "self" if self.session.resources == "server" else str(self.pid)
        try:
            return os.readlink(f"/proc/{process}/fd/{fd}")
        except OSError:
            return ""

    def proceed(
        self,
        then: "Callable[[Done], Outcome | None] | None" = None,
        /,
        **changes: int | str | bytes,
    ) -> Proceed:
        """Let the call go on, with the named arguments changed; *then* sees its result and may replace it."""
        return Proceed(changes, then)

    def fail(self, errno: int) -> Fail:
        """Answer that the call fails with *errno*."""
        return Fail(errno)

    def answer(self, value: int = 0, /, **outs: bytes) -> Return:
        """Answer that the call succeeds with *value*, and fill the named out-buffers."""
        return Return(value, outs)

    def open_bytes(self, data: bytes) -> OpenBytes:
        """Answer with a new descriptor that reads *data*, with the close-on-exec flag that the call asks."""
        flags = self.argument("flags") if "flags" in _indexes(self.syscall) else 0
        return OpenBytes(data, flags if isinstance(flags, int) else 0)

    def changed(self, changes: dict[str, int | str | bytes]) -> tuple[Registers, dict[int, bytes]]:
        """Return the registers and in-buffers of this call with *changes* applied, see `Proceed`.

        Raises:
            TypeError: the call has no such argument, or one of another type.
        """
        args, ins = list(self.args), dict(self.ins)
        for name, value in changes.items():
            try:
                index = index_of(self.syscall, name)
            except KeyError:
                raise TypeError(f"{self.name} has no argument {name!r} to change") from None
            arg = self.syscall.args[index]
            if isinstance(value, int):
                if arg.kind in _TEXT_OR_BUFFER:
                    raise TypeError(f"{self.name}: {name!r} is changed by str or bytes, not by a number")
                args[index] = value & _MASK64
                ins.pop(index, None)
                continue
            if arg.kind not in _TEXT_OR_BUFFER and arg.kind is not ArgKind.REQUEST_ARG:
                raise TypeError(f"{self.name}: {name!r} is changed by a number, not by {value!r}")
            ins[index] = os.fsencode(value)
            args[index] = args[index] or _SOME_ADDRESS
            length = arg.length
            if length is not None and length.arg is not None and not length.indirect:
                is_vector = arg.kind is ArgKind.IOV_IN
                args[length.arg] = 1 if is_vector else len(ins[index]) // length.scale
        return (args[0], args[1], args[2], args[3], args[4], args[5]), ins

    def outs_by_index(self, outs: dict[str, bytes]) -> dict[int, bytes]:
        """Return *outs* by argument index, cut to what the program offers.

        Raises:
            TypeError: the call has no buffer of such a name that it could fill.
        """
        by_index: dict[int, bytes] = {}
        indexes = _indexes(self.syscall)
        for name, data in outs.items():
            index = indexes.get(name)
            if index in self.outs:
                room = self.outs[index]
                by_index[index] = data if len(data) <= room else data[:room]
            elif index is None or self.syscall.args[index].kind not in _CAN_BE_FILLED:
                raise TypeError(f"{self.name} fills no buffer {name!r}")
        return by_index

    def outs_by_name(self, outs: dict[int, bytes]) -> dict[str, bytes]:
        """Return *outs* (by argument index) by argument name; what was offered and not filled is empty."""
        args = self.syscall.args
        return {args[index].name: outs.get(index, b"") for index in self.outs if index < len(args)}


_TEXT_OR_BUFFER = frozenset(
    {ArgKind.PATH, ArgKind.STR, ArgKind.STRV, ArgKind.IN, ArgKind.INOUT, ArgKind.IOV_IN, ArgKind.MSG_IN}
)
_SIGNED32 = frozenset({ArgKind.INT, ArgKind.FD, ArgKind.DIRFD})
_TEXT = frozenset({ArgKind.PATH, ArgKind.STR})
_FILLED = frozenset({ArgKind.OUT, ArgKind.IOV_OUT})
_CAN_BE_FILLED = _FILLED | {ArgKind.INOUT, ArgKind.MSG_OUT, ArgKind.REQUEST_ARG}

_index_cache: dict[str, dict[str, int]] = {}


def _indexes(syscall: Syscall) -> dict[str, int]:
    indexes = _index_cache.get(syscall.name)
    if indexes is None:
        indexes = {arg.name: index for index, arg in enumerate(syscall.args)}
        _index_cache[syscall.name] = indexes
    return indexes


def index_of(syscall: Syscall, name: str) -> int:
    """Return the index of the argument *name*.

    Raises:
        KeyError: the call has no such argument.
    """
    return _indexes(syscall)[name]


def _value(arg: Arg, index: int, args: Registers, ins: dict[int, bytes], outs: dict[int, int]) -> Any:
    kind, register = arg.kind, args[index]
    if kind in _SIGNED32:
        low = register & 0xFFFFFFFF
        return low - (low >> 31 << 32)
    if kind is ArgKind.UINT:
        return register & 0xFFFFFFFF
    if kind is ArgKind.LONG:
        return register - (register >> 63 << 64)
    if kind is ArgKind.SIZE or kind is ArgKind.PTR:
        return register
    data = ins.get(index)
    if kind in _TEXT:
        return None if data is None else os.fsdecode(data)
    if kind is ArgKind.STRV:
        return None if data is None else [os.fsdecode(word) for word in data.split(b"\0")] if data else []
    if kind in _FILLED:
        return outs.get(index)
    if data is not None or kind is not ArgKind.REQUEST_ARG:
        return data
    return outs.get(index, register)
