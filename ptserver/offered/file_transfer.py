"""How the file of a program gets from the server that offers it to the host that executes it.

The host asks for pieces (`Fetch`), several at a time so that a long way does not slow it down; the server answers
each with a `Chunk`. What arrives is checked by `ptserver.offered.binary_cache`.

Not trusted: the peer. A host can have nothing but the one file that was offered; a server can make the host keep no
more than it announced.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from goabi.build_id import read_build_id
from goabi.elf_header import ElfHeader
from ptserver.errors import LaunchError, ProtocolError, PtServerError, RefusedError
from ptserver.messages import Chunk, Executable, Fetch, Ping, Pong, Refused, Signal, ToHost
from ptserver.net.connection import Connection
from ptserver.offered.binary_cache import BinaryCache
from ptserver.offered.digests import default_folder, sha256_of

_PIECE_BYTES = 1 << 20
#: Pieces under way: 16 MiB fill a link of 1 GB/s that is 16 ms long.
_UNDER_WAY = 16
#: Signals that end a program that has not begun.
_ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
#: How long the host waits for the next piece.
_PATIENCE_SECONDS = 30.0


class EndedEarlyError(PtServerError):
    """The user does not want the program any more, whose file has not come yet. signo: the signal that says so."""

    def __init__(self, signo: int) -> None:
        super().__init__(f"signal {signo} came before the program had")
        self.signo = signo


class OfferedFile:
    """The server's half. progress: told of how many bytes have been sent, of how many."""

    def __init__(
        self,
        path: str,
        header: ElfHeader,
        keep: Callable[[int], int],
        progress: Callable[[int, int], None] = lambda sent, total: None,
    ) -> None:
        """Open and describe the program at *path*; *keep* moves a descriptor out of a program's way.

        Raises:
            LaunchError: it cannot be read.
        """
        try:
            self._fd = keep(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            digest = sha256_of(self._fd, default_folder())
            build_id = read_build_id(path, header)
        except OSError as error:
            raise LaunchError(f"cannot read {path}: {error.strerror}") from error
        name = os.fsencode(os.path.basename(path)).decode("utf-8", "replace")
        self.executable = Executable(name, header.arch, header.file_size_bytes, digest, build_id[:4096])
        self._progress = progress

    def answer(self, fetch: Fetch) -> Chunk:
        """Return the piece that the host asks for.

        Raises:
            ProtocolError: it is of another file.
        """
        if fetch.sha256 != self.executable.sha256:
            raise ProtocolError("the host asked for a file that was not offered")
        data = os.pread(self._fd, fetch.size, fetch.offset)
        self._progress(fetch.offset + len(data), self.executable.size_bytes)
        return Chunk(fetch.sha256, fetch.offset, data)


def obtain(executable: Executable, cache: BinaryCache, connection: Connection[ToHost]) -> tuple[Path, bool]:
    """Return the program's file on this host, and whether it had to be sent. Blocks.

    Raises:
        CacheError: it cannot be kept, or is not what was announced.
        EndedEarlyError: a signal came for it that would end it.
        ConnectionLostError, ProtocolError, RefusedError: the server is gone, or says something else.
    """
    found = cache.find(executable)
    if found is not None:
        return found, False
    with cache.arriving(executable) as arriving:
        asked = 0
        while arriving.size_bytes < executable.size_bytes:
            while asked < executable.size_bytes and asked - arriving.size_bytes < _UNDER_WAY * _PIECE_BYTES:
                connection.send(Fetch(executable.sha256, asked, _PIECE_BYTES))
                asked += _PIECE_BYTES
            for message in connection.await_messages(_PATIENCE_SECONDS):
                match message:
                    case Chunk() if message.data and message.offset == arriving.size_bytes:
                        arriving.write(message.data)
                    case Chunk():
                        raise ProtocolError("the server sent another piece of the program than was asked for")
                    case Signal() if message.signo in _ENDING:
                        raise EndedEarlyError(message.signo)
                    case Signal():
                        pass
                    case Ping():
                        connection.send(Pong(message.id))
                    case Pong():
                        pass
                    case Refused():
                        raise RefusedError(message.code, f"the server refuses: {message.message}")
                    case _:
                        raise ProtocolError(f"the server sent {type(message).__name__} before its program")
        return cache.keep(arriving), True
