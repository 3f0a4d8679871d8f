"""What the messages of a spread program are made of, whoever says them to whom."""

from typing import Annotated, Generic, TypeVar

from msgspec import Meta

from ptserver.messages import Message

PageNumber = Annotated[int, Meta(ge=0, lt=1 << 35)]
HostId = Annotated[int, Meta(ge=0, lt=1 << 10)]
ThreadId = Annotated[int, Meta(ge=0, lt=1 << 31)]
U64 = Annotated[int, Meta(ge=0)]
RequestId = Annotated[int, Meta(ge=0)]


class SpreadMessage(Message, frozen=True, array_like=True):
    """Base of all of them; the first element of its array is the class name in lower case."""


T = TypeVar("T")


class Several(SpreadMessage, Generic[T], frozen=True):
    """Either to the other: as if each of *messages* had been sent alone, in order."""

    messages: tuple[T, ...]
