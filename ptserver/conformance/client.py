"""The stub host that the checks play: blocking, with one connection and no program.

`RawClient` sends bytes and reads frames in JSON, for what happens before a session; `Client` has a session,
makes calls and keeps what arrives in between. Neither trusts the server.
"""

import errno
import os
import select
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ptserver.errors import ConnectError, ConnectionLostError, ProtocolError
from ptserver.messages import (
    CODECS,
    PROTOCOL_VERSION,
    Goodbye,
    Hello,
    Machine,
    Message,
    Ping,
    Pong,
    Program,
    Refused,
    Result,
    StreamCredit,
    StreamData,
    StreamEnd,
    Syscall,
    Welcome,
)
from ptserver.net import transport
from ptserver.net.connection import client_handshake
from ptserver.net.wire import HEADER_BYTES, MAX_FRAME_BYTES, Codec, frame_size

HELLO = Hello(
    versions=(PROTOCOL_VERSION,),
    codecs=CODECS,
    software="ptserver conformance",
    machine=Machine(arch="amd64", kernel="6.1.0", hostname="conformance"),
    program=Program.shown("/conformance/main", ["main", "argument"]),
    streams=(),
)

#: What a pointer register holds: no address at the server, which must use the buffers instead.
POINTER = 0x7FFF_0000_1000
_MASK = (1 << 64) - 1
_TID, _PID = 4242, 4242
_MAX_WELCOME = Welcome | Refused


class RawClient:
    """A connection on which nothing has been said."""

    def __init__(self, address: str, timeout: float) -> None:
        self._timeout = timeout
        self.sock = transport.connect(address, timeout)
        self.sock.settimeout(timeout)

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes; that the server has closed already is not an error."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def send_frame(self, payload: bytes) -> None:
        """Send a frame."""
        self.send(len(payload).to_bytes(HEADER_BYTES, "big") + payload)

    def answer(self) -> Welcome | Refused | None:
        """Return the server's answer, or None if it closes without one.

        Raises:
            ProtocolError: it is neither a welcome nor a refusal.
            ConnectError: nothing comes in time.
        """
        answer: Welcome | Refused | None = self.answer_as(_MAX_WELCOME)
        return answer

    def answer_as(self, expected: Any) -> Any:
        """As `answer`, for another type, or union of types, of messages in JSON."""
        header = self._read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return None
        return Codec("json").decoder(expected)(self._read(frame_size(header, MAX_FRAME_BYTES)))

    def _read(self, size: int) -> bytes:
        data = b""
        deadline = time.monotonic() + self._timeout
        while len(data) < size:
            self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                piece = self.sock.recv(size - len(data))
            except TimeoutError as error:
                raise ConnectError(
                    f"the server neither answers nor closes within {self._timeout:g} s"
                ) from error
            except ConnectionResetError:
                piece = b""
            if not piece:
                break
            data += piece
        return data


class Client:
    """A stub host with a session.

    `results` holds the answers that nobody has asked for yet, `streams` what has come of each stream, `credit`
    what the server takes of stream 0, `ended` the streams that are at their end, `others` the rest in order.
    """

    def __init__(self, address: str, hello: Hello, timeout: float) -> None:
        sock = transport.connect(address, timeout)
        self.timeout = timeout
        self.welcome, self.connection = client_handshake(sock, hello, timeout)
        self._poll = select.poll()
        self._poll.register(self.connection, select.POLLIN)
        self._last_id = 0
        self._offered: dict[int, dict[int, int]] = {}  # the room of the calls in flight, by id
        self.results: dict[int, Result] = {}
        self.streams: dict[int, bytearray] = defaultdict(bytearray)
        self.credit = 0
        self.ended: set[int] = set()
        self.others: deque[Message] = deque()

    def close(self) -> None:
        """Close the connection at once."""
        self.connection.close()

    def send(self, message: Message) -> None:
        """Send a message."""
        self.connection.send(message)
        if not self.connection.drain(self.timeout):
            raise ConnectError(f"the server takes no more input for {self.timeout:g} s")

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are; that the server has closed already is not an error."""
        with socket.socket(fileno=os.dup(self.connection.fileno())) as sock:
            sock.settimeout(self.timeout)  # of the file, so of the connection's socket too
            try:
                sock.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                sock.setblocking(False)

    def send_payload(self, payload: bytes) -> None:
        """Send a frame with any payload."""
        self.send_raw(len(payload).to_bytes(HEADER_BYTES, "big") + payload)

    def encode(self, fields: Mapping[str, object]) -> bytes:
        """Return a payload in the session's codec that need not be a message."""
        if self.connection.codec.name == "msgpack":
            return msgspec.msgpack.encode(fields)
        return msgspec.json.encode(fields)

    def pump(self, timeout: float) -> bool:
        """Take in what comes within `timeout` seconds; return whether anything has.

        Raises:
            ConnectionLostError: the server has closed.
            ProtocolError: what comes is no message, or answers no call, or has more bytes than the call has
                room for.
        """
        self._poll.modify(
            self.connection, select.POLLIN | (select.POLLOUT if self.connection.wants_write else 0)
        )
        if not self._poll.poll(max(timeout, 0) * 1000):
            return False
        self.connection.flush()
        for message in self.connection.receive():
            match message:
                case Result(id=number):
                    offered = self._offered.pop(number, None)
                    if offered is None:
                        raise ProtocolError(f"an answer came to call {number}, which is not in flight")
                    for index, data in message.outs.items():
                        if len(data) > offered.get(index, 0):
                            raise ProtocolError(
                                f"{len(data)} bytes came for argument {index}, with room for {offered.get(index, 0)}"
                            )
                    self.results[number] = message
                case StreamData(stream=stream, data=data):
                    self.streams[stream] += data
                case StreamCredit(stream=0, size=size):
                    self.credit += size
                case StreamEnd(stream=stream):
                    self.ended.add(stream)
                case Ping(id=number):
                    self.send(Pong(id=number))
                case _:
                    self.others.append(message)
        return True

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """Take in messages until `condition` holds.

        Raises:
            ProtocolError: it does not within the timeout; `what` names it.
        """
        deadline = time.monotonic() + self.timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise ProtocolError(f"no {what} within {self.timeout:g} s")
            self.pump(left)

    def offer(self, message: Message, patience: float) -> bool:
        """Send a message without reading; return whether the server took all of it within `patience` seconds.

        What it did not take stays queued.
        """
        self.connection.send(message)
        return self.connection.drain(patience)

    def expect(self, message: Message) -> None:
        """Wait until `message` is among the others, and leave it there."""
        self.wait_for(type(message).__name__.lower(), lambda: message in self.others)

    def expect_output(self, stream: int, size: int) -> bytes:
        """Wait until `size` bytes of a stream have come, and return all that have."""
        self.wait_for(f"{size} bytes of stream {stream}", lambda: len(self.streams[stream]) >= size)
        return bytes(self.streams[stream])

    def start(
        self,
        name: str,
        *args: int,
        ins: dict[int, bytes] | None = None,
        outs: dict[int, int] | None = None,
        tid: int = _TID,
    ) -> int:
        """Make a call, do not wait for it, and return its id; registers that are not given are 0."""
        call = self.make_call(name, *args, ins=ins, outs=outs, tid=tid)
        self.send(call)
        return call.id

    def make_call(
        self,
        name: str,
        *args: int,
        ins: dict[int, bytes] | None = None,
        outs: dict[int, int] | None = None,
        tid: int = _TID,
    ) -> Syscall:
        """Return the message of a call that is about to be sent."""
        self._last_id += 1
        self._offered[self._last_id] = outs or {}
        registers = tuple(value & _MASK for value in (*args, *[0] * (6 - len(args))))
        return Syscall(self._last_id, tid, _PID, name, registers, ins or {}, outs or {})  # type: ignore[arg-type]

    def result(self, number: int) -> Result:
        """Wait for the answer to call `number`."""
        self.wait_for(f"answer to call {number}", lambda: number in self.results)
        return self.results.pop(number)

    def call(
        self, name: str, *args: int, ins: dict[int, bytes] | None = None, outs: dict[int, int] | None = None
    ) -> Result:
        """Make a call and wait for its answer."""
        return self.result(self.start(name, *args, ins=ins, outs=outs))

    def do(
        self, name: str, *args: int, ins: dict[int, bytes] | None = None, outs: dict[int, int] | None = None
    ) -> Result:
        """Make a call that should succeed.

        Raises:
            OSError: with its errno, if it does not.
        """
        result = self.call(name, *args, ins=ins, outs=outs)
        if result.errno:
            raise OSError(result.errno, f"{name}: {errno.errorcode.get(result.errno, result.errno)}")
        return result

    def ping(self) -> None:
        """Send a ping and wait for its pong."""
        self._last_id += 1
        self.send(Ping(id=self._last_id))
        self.expect(Pong(id=self._last_id))
        self.others.remove(Pong(id=self._last_id))

    def require_dropped(self) -> Refused | None:
        """Wait until the server closes, and return what it said about it.

        Raises:
            ProtocolError: it does not, or says something else.
        """
        deadline = time.monotonic() + self.timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.pump(left)
        except ConnectionLostError:
            refused = [message for message in self.others if isinstance(message, Refused)]
            if refused and refused[-1].code != "malformed":
                raise ProtocolError(f"refused as {refused[-1].code!r} instead of 'malformed'") from None
            return refused[-1] if refused else None
        raise ProtocolError(f"the server does not close the connection within {self.timeout:g} s")

    def goodbye(self) -> None:
        """Wait for the server's goodbye."""
        self.expect(Goodbye())
