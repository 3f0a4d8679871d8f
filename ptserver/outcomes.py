"""What a method of a runtime server answers to a call: one of five plain values.

    Return(n)           the call succeeds and returns n; buffers are filled by argument name
    Fail(errno.ENOENT)  the call fails
    Proceed()           the call goes on to whoever owns the resources, possibly with changed arguments;
                        what comes back may be looked at, and replaced, by a function
    Delay(0.2, other)   the same as *other*, later; only the calling thread waits
    OpenBytes(data)     the call returns a new descriptor that reads *data*

A method that returns None lets the call proceed unchanged. The shorthands of `ptserver.call.Call`
(`call.fail(...)`, `call.answer(...)`, `call.proceed(...)`, `call.open_bytes(...)`) make these values.
"""

from collections.abc import Callable

import msgspec


class Done(msgspec.Struct, frozen=True):
    """What became of a call: its result, as the program will see it.

    value: the signed 64-bit result, 0 if the call failed; errno: 0 if it succeeded, else Linux's number;
    outs: by argument name, the bytes that go into the program's memory.
    """

    value: int = 0
    errno: int = 0
    outs: dict[str, bytes] = {}


class Return(msgspec.Struct, frozen=True):
    """The call succeeds.

    value: what it returns (signed 64-bit); outs: by argument name, the bytes to put into the program's
    memory, at most as many as the program offers there.
    """

    value: int = 0
    outs: dict[str, bytes] = {}


class Fail(msgspec.Struct, frozen=True):
    """The call fails with *errno* (a Linux number from 1 to 4095, such as ``errno.ENOSPC``)."""

    errno: int


class Proceed(msgspec.Struct, frozen=True):
    """The call goes on to the owner of the resources: the shadow, or the program's own machine.

    changes: by argument name, what the call uses instead: numbers for numbers; str or bytes for paths,
    strings and buffers (the count that belongs to a buffer follows its length).
    then: called with the `Done` of the call; what it returns replaces that, None keeps it.
    """

    changes: dict[str, int | str | bytes] = {}
    then: "Callable[[Done], Outcome | None] | None" = None


class Delay(msgspec.Struct, frozen=True):
    """The same as *outcome*, but *seconds* (0 or more) later; None stands for `Proceed`."""

    seconds: float
    outcome: "Outcome | None" = None


class OpenBytes(msgspec.Struct, frozen=True):
    """The call returns a new descriptor, open for reading on a file in memory that holds *data*.

    flags: of open(2); only O_CLOEXEC matters.
    """

    data: bytes
    flags: int = 0


#: What a method of a runtime server may return, besides None.
Outcome = Return | Fail | Proceed | Delay | OpenBytes
