"""What the home and the hosts of a spread program say to each other so that pages change hands, many in one message.

home                     host A                      host B
|--- SendPages ---------->|                           |
|<-- PagesData -----------|                           |
|--- PutPages ---------------------------------------->|
"""

from enum import IntEnum

from ptserver.spread.message_base import PageNumber, SpreadMessage


class Access(IntEnum):
    """What a host may do with a page. WRITE: write without asking. CLEAN: that too, but the first write is noted."""

    READ = 0
    WRITE = 1
    CLEAN = 2


class SendPages(SpreadMessage, frozen=True):
    """Give pages: answer `PagesData`. keep: for each 1 if it stays here, protected; otherwise it is dropped."""

    pages: tuple[PageNumber, ...]
    keep: bytes


class PagesData(SpreadMessage, frozen=True):
    """The answer to `SendPages`, at once for what can go, and again for the rest.

    dirty: for each page 1 if it was written here since it came; data: what they have, one after the other.
    """

    pages: tuple[PageNumber, ...]
    dirty: bytes
    data: bytes


class PutPages(SpreadMessage, frozen=True):
    """Here are pages. access: `Access` for each; data: what they have, one after the other."""

    pages: tuple[PageNumber, ...]
    access: bytes
    data: bytes
