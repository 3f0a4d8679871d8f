"""The dynamic linker of a program whose files are a server's.

The kernel opens it on this machine, but it belongs to the libraries, which are the server's: those of another release
refuse to work with it. So the server's is compared with the one here. If they differ, the program is executed from a
copy in memory which names, as its linker, a second copy in memory: the server's. `/proc/self/exe` and the rest of
`/proc/self` are the server's to answer as ever.

Everything here happens before the program runs, and blocks.
"""

import errno
import itertools
import os

from goabi.elf_header import PT_INTERP, ElfHeader
from ptserver.errors import LaunchError, ProtocolError
from ptserver.hosts.mapped_file import write_all
from ptserver.messages import Ping, Pong, Result, Syscall, ToHost
from ptserver.net.connection import Connection

_AT_FDCWD = (1 << 64) - 100
_SOME_ADDRESS = 8
_PIECE_BYTES = 1 << 20
_PATIENCE_SECONDS = 30.0
#: More than any dynamic linker has.
_MAX_BYTES = 64 << 20


def with_interpreter_of_server(
    path: str, header: ElfHeader, connection: Connection[ToHost]
) -> tuple[str, list[int]]:
    """Return what to execute for the program at *path*, and the descriptors that must be open until that is done.

    Raises:
        LaunchError: the server lacks the program's dynamic linker.
        ConnectionLostError, ProtocolError: the server is gone, or says something else.
    """
    linker = interpreter_of_server(path, header, connection)
    if linker is None:
        return path, []
    with open(path, "rb") as file:
        program = bytearray(file.read())
    segment = next(segment for segment in header.program_headers if segment.type == PT_INTERP)
    name = f"/proc/self/fd/{linker}".encode() + b"\0"
    if len(name) > segment.filesz:
        raise LaunchError(
            f"{path} needs {header.interpreter} of the server, which is another than this machine's,"
            " and has no room to name it"
        )
    program[segment.offset : segment.offset + segment.filesz] = name.ljust(segment.filesz, b"\0")
    copy = _in_memory("ptserver-program", bytes(program))
    return f"/proc/self/fd/{copy}", [linker, copy]


def interpreter_of_server(path: str, header: ElfHeader, connection: Connection[ToHost]) -> int | None:
    """Return a descriptor of a copy of the dynamic linker of the program at *path*, if this machine has another.

    Raises: as `with_interpreter_of_server`.
    """
    if header.interpreter is None:
        return None
    theirs = _read(header.interpreter, path, connection)
    try:
        with open(header.interpreter, "rb") as file:
            if file.read() == theirs:
                return None
    except OSError:
        pass  # it need not exist here
    return _in_memory("ptserver-interpreter", theirs)


def _read(interpreter: str, path: str, connection: Connection[ToHost]) -> bytes:
    calls = _Calls(connection)
    opened = calls.make("openat", (_AT_FDCWD, _SOME_ADDRESS, os.O_RDONLY, 0), {1: os.fsencode(interpreter)})
    if opened.errno:
        raise LaunchError(
            f"{path} needs the dynamic linker {interpreter}, which the server does not give:"
            f" {os.strerror(opened.errno)}; build Go programs with CGO_ENABLED=0"
        )
    data = b""
    while len(data) < _MAX_BYTES:
        args = (opened.value, _SOME_ADDRESS, _PIECE_BYTES, len(data))
        piece = calls.make("pread64", args, {}, {1: _PIECE_BYTES})
        if piece.errno or not piece.outs.get(1):
            break
        data += piece.outs[1]
    calls.make("close", (opened.value,), {})
    calls.put_back()
    return data


class _Calls:
    """Makes calls one by one before there is a program; what else the server says meanwhile is kept."""

    def __init__(self, connection: Connection[ToHost]) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._others: list[ToHost] = []

    def make(
        self, name: str, args: tuple[int, ...], ins: dict[int, bytes], outs: dict[int, int] | None = None
    ) -> Result:
        a0, a1, a2, a3 = args + (0,) * (4 - len(args))
        call_id = next(self._ids)
        self._connection.send(Syscall(call_id, 0, 0, name, (a0, a1, a2, a3, 0, 0), ins, outs or {}))
        result = None
        while result is None:
            for message in self._connection.await_messages(_PATIENCE_SECONDS):
                if isinstance(message, Ping):
                    self._connection.send(Pong(message.id))
                elif isinstance(message, Result):
                    if message.id != call_id or message.proceed:
                        raise ProtocolError("the server answered a call that nobody made")
                    result = message
                else:
                    self._others.append(message)
        return result

    def put_back(self) -> None:
        self._connection.put_back(self._others)


def _in_memory(name: str, data: bytes) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        write_all(fd, data, 0)
    except OSError as error:
        os.close(fd)
        raise LaunchError(f"no memory for {name}: {os.strerror(error.errno or errno.ENOMEM)}") from error
    return fd
