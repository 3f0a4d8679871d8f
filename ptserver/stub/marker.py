"""Whether an executable has the stub, found out from its file alone.

The stub's marker (see `ptserver.stub.hypercalls`) is a string constant of the program, so it lies in a segment that
is loaded for reading only. Only those segments are searched, in slices, because the stub host asks before each
start: 90 MB of them take some 25 ms when they are in the page cache. The file is not trusted, neither
its headers (`goabi.elf_header` checks them) nor what looks like a marker: who writes a marker into a program makes
it ask for a server, no more.

Any thread may call this.
"""

import os
import re
from dataclasses import dataclass

from goabi.elf_header import PF_W, PF_X, PT_LOAD, ElfHeader, read_elf_header
from ptserver.stub.hypercalls import MARKER_RUN, REQUEST_MAX_BYTES, STUB_ABI, MarkerError, decode_marker

_SLICE_BYTES = 1 << 17  # fits the processor's cache: reading and searching then cost one pass over memory
_WHOLE_RUN = re.compile(re.escape(MARKER_RUN[:1]) + b"+")


@dataclass(frozen=True, slots=True)
class StubInfo:
    """The stub inside a program: the version of its hypercalls, and the OS abstraction that it wants."""

    abi: int
    goosremote: str

    @property
    def supported(self) -> bool:
        """Whether this package speaks the stub's hypercalls."""
        return self.abi == STUB_ABI


def find_stub_marker(path: str | os.PathLike[str], header: ElfHeader | None = None) -> StubInfo | None:
    """Return what the program at `path` says of its stub; None when it has none.

    `header` is the file's own, for who has read it already. Raises: OSError when the file cannot be read,
    `goabi.errors.ElfError` when it is no ELF program.
    """
    if header is None:
        header = read_elf_header(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for segment in header.program_headers:
            if segment.type == PT_LOAD and not segment.flags & (PF_W | PF_X):
                found = _search(fd, segment.offset, segment.offset + segment.filesz)
                if found is not None:
                    return found
        return None
    finally:
        os.close(fd)


def _search(fd: int, start: int, end: int) -> StubInfo | None:
    """Return the first marker in the bytes [start, end) of the file; slices overlap by a marker's length."""
    buffer = bytearray(_SLICE_BYTES + REQUEST_MAX_BYTES)
    for offset in range(start, end, _SLICE_BYTES):
        size = min(os.preadv(fd, [buffer], offset), end - offset)
        if size <= 0:
            return None  # the file became shorter meanwhile
        at = buffer.find(MARKER_RUN, 0, size)
        while at >= 0:
            run = _WHOLE_RUN.match(buffer, at, size)
            assert run is not None
            at = run.end() - len(MARKER_RUN)
            if at >= _SLICE_BYTES:
                break  # the next slice has the whole of it
            try:
                return StubInfo(*decode_marker(bytes(buffer[at : min(at + REQUEST_MAX_BYTES, size)])))
            except MarkerError:
                at = buffer.find(MARKER_RUN, run.end(), size)
    return None
