"""Answers the hypercalls of programs with the stub; their numbers and layouts are `ptserver.stub.hypercalls`."""

import contextlib
import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import MemoryAtomic, MemoryDeclare, MemoryGet, MemoryResult, MemorySet, Message
from ptserver.remote_memory.stores import StoreLostError
from ptserver.stub.hypercalls import (
    MEMORY_BYTES,
    MESSAGE_BYTES,
    REQUEST_MAX_BYTES,
    STUB_ABI,
    Hypercall,
    MarkerError,
    decode_marker,
    encode_info,
    encode_message,
)
from stepping.errors import MemoryFaultError
from stepping.syscalls.marshal import ProgramMemory


class HypercallAnswer(NamedTuple):
    """What a hypercall returns."""

    value: int = 0
    errno: int = 0


class StubCalls:
    """The stub host's side of the stub.

    info: what the program is told of its server, by the keys of `hypercalls.INFO_KEYS`; refusal: if set, the program
    is not let start, and panics with this text; watches: by process, the call that waits for the loss of the
    connection.
    """

    def __init__(self) -> None:
        self.info: dict[str, str] = {}
        self.refusal = ""
        self.watches: dict[int, PendingCall] = {}

    def answer(self, call: PendingCall) -> HypercallAnswer | None:
        """Return the answer to *call*, after writing its message; None if it has to wait."""
        if call.nr == Hypercall.WATCH:
            self.watches[call.process.pid] = call
            return None
        return self.answer_from(call.process.memory, call.nr, call.args)

    def answer_from(self, memory: ProgramMemory, number: int, args: Sequence[int]) -> HypercallAnswer:
        """Return the answer to a call *number* other than WATCH, after writing its message to *memory*."""
        if number == Hypercall.HELLO:
            return self._hello(memory, args)
        if number == Hypercall.INFO:
            address, size = args[:2]
            text = encode_info(self.info)
            _put(memory, address, text[:size])
            return HypercallAnswer(len(text))
        return HypercallAnswer(0, errno.ENOSYS)

    def tell_lost(self, reason: str) -> list[PendingCall]:
        """Write *reason* for every process that watches; return their calls, which are to return 0 now."""
        for call in self.watches.values():
            address, size = call.args[:2]
            _put(call.process.memory, address, encode_message(reason, min(size, MESSAGE_BYTES)))
        return list(self.watches.values())

    def _hello(self, memory: ProgramMemory, args: Sequence[int]) -> HypercallAnswer:
        request, request_bytes, message, message_bytes = args[:4]
        text = self.refusal or _check_marker(memory, request, request_bytes)
        if not text:
            return HypercallAnswer()
        _put(memory, message, encode_message(text, message_bytes))
        return HypercallAnswer(0, errno.ECONNREFUSED)


def answer_memory(call: PendingCall, ask: Callable[[Message], MemoryResult]) -> tuple[int, int]:
    """Pass on the memory message of an emulator; return the value and the errno for its *call*."""
    request, size, answer, room = call.args[:4]
    memory = call.process.memory
    try:
        message = _MEMORY.decode(memory.read(request, min(size, MEMORY_BYTES)))
        data = msgspec.msgpack.encode(ask(message))
        if len(data) > room:
            return 0, errno.ENOBUFS
        memory.write(answer, data)
    except MemoryFaultError:
        return 0, errno.EFAULT
    except StoreLostError:
        return 0, errno.EIO
    return len(data), 0


_MEMORY: msgspec.msgpack.Decoder[MemoryDeclare | MemoryGet | MemorySet | MemoryAtomic] = (
    msgspec.msgpack.Decoder(MemoryDeclare | MemoryGet | MemorySet | MemoryAtomic)
)


def _check_marker(memory: ProgramMemory, address: int, size: int) -> str:
    """Return what is wrong with the stub that says hello with the marker at *address*; empty if nothing is."""
    try:
        abi, _ = decode_marker(memory.read(address, min(size, REQUEST_MAX_BYTES)))
    except (MemoryFaultError, MarkerError):
        return "remote: this ptserver does not know the stub; build the program anew"
    if abi != STUB_ABI:
        return f"remote: the stub speaks version {abi}, this ptserver {STUB_ABI}; build the program anew"
    return ""


def _put(memory: ProgramMemory, address: int, data: bytes) -> None:
    if data:
        with contextlib.suppress(MemoryFaultError):
            memory.write(address, data)
