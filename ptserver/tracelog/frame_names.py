"""Names where calls were made, as functions and lines; and tells whether a program is still the same one."""

import os

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from ptserver.tracelog.events import Frame
from stepping.ring import unpack_stack

_CACHED_STACKS = 1 << 14


class FrameNames:
    """Names the stacks of one Go program; the same stack is the same tuple.

    exe: the program's file, empty without one; load_bias: to be set before the first stack is named.
    """

    def __init__(self, path: str | None, *, copied: bool = False) -> None:
        """Open the program's file; *copied*: keeping no descriptor. Without one, stacks have addresses alone.

        Raises:
            OSError, GoAbiError: it cannot be read.
        """
        self._binary = GoBinary.open(path, prefer_table=True, copied=copied) if path is not None else None
        self.exe = os.path.realpath(path) if path is not None else ""
        self.load_bias = 0
        self._stacks: dict[bytes, tuple[Frame, ...]] = {}

    def __call__(self, addresses: bytes) -> tuple[Frame, ...]:
        """Return the frames of an item of `RingBatch.stacks`, those of inlined calls too, innermost first."""
        stack = self._stacks.get(addresses)
        if stack is None:
            if len(self._stacks) >= _CACHED_STACKS:
                self._stacks.clear()
            frames = (frame for pc in unpack_stack(addresses) for frame in self._name(pc))
            stack = self._stacks[addresses] = tuple(frames)
        return stack

    def function_at(self, pc: int) -> str:
        """Return the name of the function at an address, empty if there is none."""
        if self._binary is None:
            return ""
        function = self._binary.functions.find_function(pc - self.load_bias)
        return function.name if function is not None else ""

    @property
    def build_id(self) -> str:
        """What tells the program's file from others; empty if it has nothing of the kind."""
        if self._binary is None:
            return ""
        return self._binary.elf.go_build_id or self._binary.elf.gnu_build_id or ""

    def close(self) -> None:
        """Give up the file."""
        if self._binary is not None:
            self._binary.close()

    def _name(self, pc: int) -> tuple[Frame, ...]:
        if self._binary is None:
            return (Frame("", pc=pc),)
        try:
            found = self._binary.functions.frames_at(pc - self.load_bias, is_return_address=True)
        except GoAbiError:
            found = ()
        return tuple(Frame(one.function, one.file, one.line, pc) for one in found) or (Frame("", pc=pc),)


def exe_identity(pid: int) -> tuple[int, int] | None:
    """Return what tells the program that *pid* executes from another; None if it is gone."""
    try:
        status = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return status.st_dev, status.st_ino
