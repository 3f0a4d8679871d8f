"""An access to a remote variable as a server sees it."""

from typing import NamedTuple

from ptserver.session import Session


class MemoryAccess(NamedTuple):
    """One access of a thread of the program to a remote variable.

    session: whose program it is; tid: the thread; goid: its goroutine, 0 if that is not known or not asked for
    (`RuntimeServer.goroutines`). variable: its name; offset, size: which of its bytes. data: what is written, or the
    operand of an atomic operation, little-endian as in memory; operation: of an atomic access, ``add``, ``and``,
    ``or``, ``xor``, ``exchange`` or ``compare_exchange``; expected: what the last one compares with.
    """

    session: Session
    tid: int
    goid: int
    variable: str
    offset: int
    size: int
    data: bytes = b""
    operation: str = ""
    expected: bytes = b""

    @property
    def value(self) -> int:
        """*data* as an unsigned number."""
        return int.from_bytes(self.data, "little")
