"""Calls that wait for descriptors of both machines: cut in two, and what came of the halves put together. Pure.

The server gets the call without the local descriptors, and waits; this process looks at those. Numbers in select's
sets and entries of poll's array that are local are left out for the server: a negative descriptor in poll's array, a
bit that is not set in select's.
"""

import select
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stepping.syscalls import ArgKind, Syscall
from stepping.syscalls.marshal import Args

EPOLLS = frozenset("epoll_wait epoll_pwait epoll_pwait2".split())
POLLS = frozenset("poll ppoll".split())
SELECTS = frozenset("select pselect6".split())

_POLLFD = struct.Struct("=ihh")
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLRDNORM
_WRITABLE = select.POLLOUT | select.POLLERR | select.POLLWRNORM
#: What select's three sets ask for, and what answers them (fs/select.c: POLLIN_SET, POLLOUT_SET, POLLEX_SET).
_SETS = ((1, select.POLLIN, _READABLE), (2, select.POLLOUT, _WRITABLE), (3, select.POLLPRI, select.POLLPRI))


@dataclass
class Split:
    """A call cut in two. wanted: the poll events of local descriptors by the program's number; ins: the server's."""

    ins: dict[int, bytes]
    wanted: dict[int, int] = field(default_factory=dict)


def without_waiting(row: Syscall, args: Args, ins: dict[int, bytes]) -> tuple[Args, dict[int, bytes]]:
    """Return the call with a timeout of 0."""
    index = next(index for index, arg in enumerate(row.args) if arg.name == "timeout")
    registers = list(args)
    if row.args[index].kind is ArgKind.INT:
        registers[index] = 0
    else:
        registers[index] = registers[index] or 1  # a null pointer would be to wait for ever
        ins = ins | {index: bytes(16)}
    a0, a1, a2, a3, a4, a5 = registers
    return (a0, a1, a2, a3, a4, a5), ins


def split(name: str, args: tuple[int, ...], ins: dict[int, bytes], local: Iterable[int]) -> Split:
    """Return the halves of a call of `POLLS` or `SELECTS`; local: the numbers that are."""
    return _split_poll(ins, set(local)) if name in POLLS else _split_select(args, ins, set(local))


def merge(
    name: str,
    args: tuple[int, ...],
    ins: dict[int, bytes],
    remote: Mapping[int, bytes],
    ready: Mapping[int, int],
) -> tuple[int, dict[int, bytes]]:
    """Return the result of the whole call, its value and its outs.

    ins: what the program asked; remote: the outs of the server's half, empty if that failed; ready: the poll events
    of local descriptors, by number.
    """
    if name in POLLS:
        return _merge_poll(ins, remote, ready)
    return _merge_select(args, ins, remote, ready)


def _split_poll(ins: dict[int, bytes], local: set[int]) -> Split:
    halves = Split(dict(ins))
    entries = bytearray(ins.get(0, b""))
    for at in range(0, len(entries) - _POLLFD.size + 1, _POLLFD.size):
        fd, events, _ = _POLLFD.unpack_from(entries, at)
        if fd in local:
            halves.wanted[fd] = halves.wanted.get(fd, 0) | events & 0xFFFF
            _POLLFD.pack_into(entries, at, -1, events, 0)
    halves.ins[0] = bytes(entries)
    return halves


def _merge_poll(
    ins: dict[int, bytes], remote: Mapping[int, bytes], ready: Mapping[int, int]
) -> tuple[int, dict[int, bytes]]:
    asked = ins.get(0, b"")
    answers = remote.get(0, b"").ljust(len(asked), b"\0")
    entries, count = bytearray(asked), 0
    for at in range(0, len(asked) - _POLLFD.size + 1, _POLLFD.size):
        fd, events, _ = _POLLFD.unpack_from(asked, at)
        if fd in ready:
            revents = ready[fd] & (events & 0xFFFF | select.POLLERR | select.POLLHUP | select.POLLNVAL)
        else:
            revents = _POLLFD.unpack_from(answers, at)[2] & 0xFFFF if remote else 0
        _POLLFD.pack_into(entries, at, fd, events, revents - (revents >> 15 << 16))
        count += revents != 0
    return count, {**remote, 0: bytes(entries)}


def _split_select(args: tuple[int, ...], ins: dict[int, bytes], local: set[int]) -> Split:
    halves = Split(dict(ins))
    for index, asks, _ in _SETS:
        if index not in ins:
            continue
        bits = int.from_bytes(ins[index], "little")
        for fd in local:
            if fd < args[0] & 0xFFFFFFFF and bits >> fd & 1:
                halves.wanted[fd] = halves.wanted.get(fd, 0) | asks
                bits &= ~(1 << fd)
        halves.ins[index] = bits.to_bytes(len(ins[index]), "little")
    return halves


def _merge_select(
    args: tuple[int, ...], ins: dict[int, bytes], remote: Mapping[int, bytes], ready: Mapping[int, int]
) -> tuple[int, dict[int, bytes]]:
    outs, count = dict(remote), 0
    for index, _, answers in _SETS:
        if index not in ins:
            continue
        asked = int.from_bytes(ins[index], "little")
        bits = int.from_bytes(remote.get(index, b""), "little")
        for fd, events in ready.items():
            if asked >> fd & 1 and events & answers:
                bits |= 1 << fd
        count += bits.bit_count()
        outs[index] = bits.to_bytes(len(ins[index]), "little")
    return count, outs
