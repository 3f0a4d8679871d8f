"""What is said so that pages go straight from host to host: by the home, by hosts to it, and by hosts to each other.

home                     host A                      host B
|--- PassPage ----------->|                           |
|--- ExpectPage --------------------------------------->|   when no other host has the page any more
|                         |--- PassedPage ----------->|   over their own connection
|<-- Arrived -------------------------------------------|
|--- Settled ------------>|                           |   sometime later, for many

A page is placed at B when both `ExpectPage` and `PassedPage` have come, in either order. A keeps the content until it
is settled. See `ptserver.spread.links` for what happens when the connection is lost.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from ptserver.spread.message_base import HostId, PageNumber, RequestId, Several, SpreadMessage
from stepping.maps import PAGE_BYTES

#: How many bytes the secret has by which two hosts know each other.
SECRET_BYTES = 32

PageContent = Annotated[bytes, Meta(min_length=PAGE_BYTES, max_length=PAGE_BYTES)]


class Listening(msgspec.Struct, frozen=True, array_like=True):
    """Where a host takes connections of other hosts: at TCP *port* of the address at which the home reaches it, or,
    on this machine, at the abstract Unix socket *name*. certificate: in PEM, if it speaks TLS there.
    """

    port: Annotated[int, Meta(ge=0, lt=1 << 16)] = 0
    name: str = ""
    certificate: str = ""


# Home to host.


class Link(SpreadMessage, frozen=True):
    """Have a connection with host *peer*: answer `Linked` when it is there, and `Unlinked` when it is over.

    secret: by which the two know each other, for one connection. address: where to connect to; if it is empty, *peer*
    connects. certificate: what *peer* must show, in PEM; empty without TLS.
    """

    peer: HostId
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    address: str = ""
    certificate: str = ""


class Unlink(SpreadMessage, frozen=True):
    """Have no connection with *peer* any more: answer `Unlinked`, unless that has been said already."""

    peer: HostId


class PassPage(SpreadMessage, frozen=True):
    """Give host *to* a page, as `SendPages`: send it `PassedPage`, or the home `PagesData` if they are not linked."""

    page: PageNumber
    keep: bool
    to: HostId
    transfer: RequestId


class PassAgain(SpreadMessage, frozen=True):
    """*transfer* has not arrived, and will not: answer `PagesData`, if it was sent to the other host."""

    transfer: RequestId


class Settled(SpreadMessage, frozen=True):
    """Their content is not needed any more."""

    transfers: tuple[RequestId, ...]


class ExpectPage(SpreadMessage, frozen=True):
    """Take a page of host *source*, as `PutPages`: answer `Arrived`.

    clean_if_unwritten: it is clean also if it was not written where it comes from.
    """

    page: PageNumber
    transfer: RequestId
    source: HostId
    writable: bool
    clean: bool = False
    clean_if_unwritten: bool = False


# Host to home.


class Linked(SpreadMessage, frozen=True):
    """There is a connection with *peer*."""

    peer: HostId


class Unlinked(SpreadMessage, frozen=True):
    """There is no connection with *peer*, and nothing of what it sent will be taken any more."""

    peer: HostId
    reason: str = ""


class Arrived(SpreadMessage, frozen=True):
    """The answer to `ExpectPage`: the page is here. dirty: as in `PagesData`."""

    page: PageNumber
    transfer: RequestId
    dirty: bool


# Host to host.


class PassedPage(SpreadMessage, frozen=True):
    """The page of *transfer*. dirty: as in `PagesData`."""

    page: PageNumber
    transfer: RequestId
    data: PageContent
    dirty: bool


FromPeer = PassedPage | Several[PassedPage]
