"""Frames and codecs: messages to bytes and back. No I/O.

    stream  = frame*
    frame   = size payload
    size    = 4 bytes, unsigned, big-endian: the payload's length in bytes, 1 to the decoder's limit
    payload = one message: a JSON object in UTF-8, or a MessagePack map, with a member "type"

The two frames of the handshake are JSON, the first (a `Hello`) of at most `MAX_HELLO_BYTES`; every later frame
is of the codec that the welcome named and of at most `MAX_FRAME_BYTES`.

Nothing that arrives is trusted: whatever the bytes are, decoding gives messages whose fields keep the bounds
that `ptserver.messages` states, or raises `ProtocolError`; a size is checked before memory is taken for it.
No object here may be used by two threads at once.
"""

import struct
from collections.abc import Callable
from typing import Any

import msgspec

from ptserver.errors import ProtocolError
from ptserver.messages import CODECS, MAX_TRANSFER_BYTES, Message, Observed, Syscall

__all__ = [
    "HEADER_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_HELLO_BYTES",
    "MAX_TRANSFER_BYTES",
    "Bytes",
    "Codec",
    "FrameDecoder",
    "frame_size",
]

#: What an encoded message may be given as.
Bytes = bytes | bytearray | memoryview

HEADER_BYTES = 4

#: The largest payload of a frame: a call's data in base64, and room for the rest of the message.
MAX_FRAME_BYTES = 2 * MAX_TRANSFER_BYTES

#: The largest payload that a server takes from a peer that has no session yet.
MAX_HELLO_BYTES = 64 << 10

_HEADER = struct.Struct(">I")
_unpack = _HEADER.unpack_from
_NO_SIZE = bytes(HEADER_BYTES)
_U64_MAX = (1 << 64) - 1


def frame_size(header: Bytes, max_frame_bytes: int, offset: int = 0) -> int:
    """Return the payload's length that the header at `offset` states.

    Raises:
        ProtocolError: it is 0 or above `max_frame_bytes`.
    """
    size: int = _unpack(header, offset)[0]
    if 0 < size <= max_frame_bytes:
        return size
    if size == 0:
        raise ProtocolError("the peer sent an empty frame; is it a ptserver?")
    raise ProtocolError(
        f"the peer sent a frame of {size} bytes, more than the {max_frame_bytes} allowed here; is it a ptserver?"
    )


class FrameDecoder:
    """Cuts a stream of bytes, which may come in pieces of any size, into frames."""

    __slots__ = ("_limit", "_partial", "_wanted")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit = max_frame_bytes
        self._partial = bytearray()  # an incomplete frame with its header
        self._wanted = HEADER_BYTES  # how long _partial must be before it is worth another look

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an incomplete frame, its header included, have come."""
        return len(self._partial)

    def feed(self, data: Bytes) -> list[memoryview]:
        """Return the payloads that `data` completes, in order, as views.

        They look into `data` where they can, so they are valid until the caller changes it. Memory is taken
        for what has come, not for what a header announces.

        Raises:
            ProtocolError: a header states a size that is not allowed; the decoder is of no use after that.
        """
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return []
            data = self._partial
        view = memoryview(data)
        if len(view) > HEADER_BYTES and _unpack(view)[0] == len(view) - HEADER_BYTES <= self._limit:
            if self._partial:
                self._partial = bytearray()
            return [view[HEADER_BYTES:]]  # one whole frame: by far the most common case
        frames = []
        start, end = 0, len(view)
        self._wanted = HEADER_BYTES
        while end - start >= HEADER_BYTES:
            size = _unpack(view, start)[0]
            if not 0 < size <= self._limit:
                frame_size(view, self._limit, start)  # raises
            stop = start + HEADER_BYTES + size
            if stop > end:
                self._wanted = HEADER_BYTES + size
                break
            frames.append(view[start + HEADER_BYTES : stop])
            start = stop
        if start < end:
            if start or data is not self._partial:
                self._partial = bytearray(view[start:])
        elif self._partial:
            self._partial = bytearray()  # a new one: views look into the old
        return frames


class Codec:
    """One way of writing messages: "msgpack" or "json"."""

    __slots__ = ("_encode_into", "name")

    def __init__(self, name: str) -> None:
        if name not in CODECS:
            raise ValueError(f"no codec {name!r}; there are {', '.join(CODECS)}")
        self.name = name
        encoder = msgspec.msgpack.Encoder() if name == "msgpack" else msgspec.json.Encoder()
        self._encode_into = encoder.encode_into

    def encode(self, message: Message) -> bytearray:
        """Return `message` as a frame. Raises: as :meth:`encode_into`."""
        out = bytearray()
        self.encode_into(message, out)
        return out

    def encode_into(self, message: Message, out: bytearray) -> None:
        """Append `message` to `out` as a frame; `out` is as before if that fails.

        Raises:
            ProtocolError: it does not fit into a frame, or holds text that is not UTF-8 or a number beyond
                64 bits.
        """
        start = len(out)
        out += _NO_SIZE
        try:
            self._encode_into(message, out, -1)
        except (UnicodeEncodeError, OverflowError, msgspec.EncodeError) as error:
            del out[start:]
            raise ProtocolError(f"cannot send {type(message).__name__}: {_line(error)}") from error
        size = len(out) - start - HEADER_BYTES
        if size > MAX_FRAME_BYTES:
            del out[start:]
            raise ProtocolError(
                f"cannot send {type(message).__name__}: {size} bytes, more than the {MAX_FRAME_BYTES} of a frame"
            )
        _HEADER.pack_into(out, start, size)

    def decoder(self, incoming: Any) -> Callable[[Bytes], Any]:
        """Return a function from a frame's payload to a message.

        incoming: a message class or a union of some, such as `ToServer`; the function gives instances of it.
        It copies what it keeps. Raises, when called: ProtocolError for anything but such a message.
        """
        if self.name == "msgpack":
            decode = msgspec.msgpack.Decoder(incoming).decode
            checked: Callable[[Bytes], Any] = decode
        else:
            decode = msgspec.json.Decoder(incoming).decode

            def checked(payload: Bytes) -> Any:
                return _check_numbers(decode(payload))

        def decode_payload(payload: Bytes) -> Any:
            try:
                return checked(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"the peer sent a malformed message: {_line(error)}") from error

        return decode_payload


def _check_numbers(message: Message) -> Message:
    """Reject registers beyond 64 bits: JSON can write them, and a msgspec bound cannot say 2**64."""
    if isinstance(message, Syscall | Observed) and max(message.goid, *message.args) > _U64_MAX:
        raise msgspec.ValidationError("Expected `int` <= 18446744073709551615 - at `$.args` or `$.goid`")
    return message


def _line(error: Exception) -> str:
    """Return an error's text as one line: it may quote what the peer sent."""
    return " ".join(str(error).split())[:300]
