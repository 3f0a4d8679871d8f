"""The calls that checks make most, with the arguments of their man pages.

Numbers and structures are those of Linux on amd64, which the hello says.
"""

import os
import struct

from ptserver.conformance.client import POINTER, Client
from ptserver.errors import ProtocolError
from ptserver.messages import Result

AT_FDCWD = -100
AT_REMOVEDIR = 0x200
_DT_DIR = 4  # <dirent.h>


class Caller(Client):
    """A stub host that makes these calls; they raise OSError if the call fails."""

    def open(self, path: bytes, flags: int = os.O_RDONLY, mode: int = 0o600, dirfd: int = AT_FDCWD) -> int:
        """Return the descriptor that openat gives."""
        return self.do("openat", dirfd, POINTER, flags | os.O_CLOEXEC, mode, ins={1: path}).value

    def read(self, fd: int, size: int) -> bytes:
        """Return what one read of at most `size` bytes gives."""
        return self.data(self.do("read", fd, POINTER, size, outs={1: size}))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Return what one pread64 gives."""
        return self.data(self.do("pread64", fd, POINTER, size, offset, outs={1: size}))

    def write(self, fd: int, data: bytes) -> int:
        """Return how much one write has taken."""
        return self.do("write", fd, POINTER, len(data), ins={1: data}).value

    def close_fd(self, fd: int) -> None:
        """Close a descriptor."""
        self.do("close", fd)

    def mkdir(self, path: bytes, mode: int = 0o700) -> None:
        """Make a folder."""
        self.do("mkdirat", AT_FDCWD, POINTER, mode, ins={1: path})

    def unlink(self, path: bytes, flags: int = 0) -> None:
        """Remove a file, or a folder if `flags` is `AT_REMOVEDIR`."""
        self.do("unlinkat", AT_FDCWD, POINTER, flags, ins={1: path})

    def pipe(self) -> tuple[int, int]:
        """Return the reading and the writing end of a new pipe."""
        data = self.structure(self.do("pipe2", POINTER, os.O_CLOEXEC, outs={0: 8}), 0, 8)
        ends: tuple[int, int] = struct.unpack("ii", data)
        return ends

    def list_folder(self, path: bytes) -> dict[bytes, int]:
        """Return the names in a folder with their types (DT_DIR and so on), without `.` and `..`."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        names: dict[bytes, int] = {}
        while entries := self.data(self.do("getdents64", fd, POINTER, 4096, outs={1: 4096})):
            while entries:
                if len(entries) < 20:
                    raise ProtocolError("getdents64 gave half an entry")
                length, kind = struct.unpack_from("HB", entries, 16)
                if length < 20 or length > len(entries):
                    raise ProtocolError(f"getdents64 gave an entry of {length} bytes")
                names[entries[19:length].split(b"\0", 1)[0]] = kind
                entries = entries[length:]
        self.close_fd(fd)
        return {name: kind for name, kind in names.items() if name not in (b".", b"..")}

    def remove_tree(self, path: bytes) -> None:
        """Remove a folder and all in it."""
        for name, kind in self.list_folder(path).items():
            if kind == _DT_DIR:
                self.remove_tree(path + b"/" + name)
            else:
                self.unlink(path + b"/" + name)
        self.unlink(path, AT_REMOVEDIR)

    @staticmethod
    def data(result: Result, index: int = 1) -> bytes:
        """Return the bytes that a call which returns a count has put into its out-buffer `index`."""
        data = result.outs.get(index, b"")
        if len(data) < result.value:
            raise ProtocolError(f"the call returned {result.value} and only {len(data)} bytes")
        return data[: result.value]

    @staticmethod
    def structure(result: Result, index: int, size: int) -> bytes:
        """Return the `size` bytes that a call has put into its out-buffer `index`."""
        data = result.outs.get(index, b"")
        if len(data) != size:
            raise ProtocolError(f"{len(data)} bytes came for argument {index}, which has {size}")
        return data
