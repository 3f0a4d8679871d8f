"""Checks of the standard streams: direction, credit, ends, and a terminal."""

import errno
import os
import struct

from ptserver.conformance.checks import Check, Server, check, fail, require, skip
from ptserver.conformance.client import POINTER
from ptserver.messages import Cancel, Exited, StreamCredit, StreamData, StreamEnd, Terminal, WindowSize

_GROUP = "streams"
_PATIENCE = 0.3  # seconds without an answer after which a call is taken to wait
_TCGETS, _TIOCGWINSZ = 0x5401, 0x5413  # <asm-generic/ioctls.h>


@check(_GROUP, "what the program writes comes out, each stream for itself")
def _out(server: Server) -> None:
    with server.own_session(streams=(1, 2)) as client:
        for stream in (1, 2):
            client.send(StreamCredit(stream=stream, size=1000))
        client.write(1, b"to stdout")
        client.write(2, b"to stderr")
        client.write(1, b", and more")
        client.wait_for("output", lambda: sum(map(len, client.streams.values())) >= 28)
        require(
            client.streams == {1: b"to stdout, and more", 2: b"to stderr"}, f"there came {client.streams}"
        )


@check(_GROUP, "no more comes than there is credit for")
def _credit(server: Server) -> None:
    with server.own_session(streams=(1,)) as client:
        client.write(1, b"0123456789")
        client.ping()
        require(not client.streams[1], "data came without credit")
        got = b""
        for size in (3, 1, 6):
            client.send(StreamCredit(stream=1, size=size))
            wanted = len(got) + size
            client.expect_output(1, wanted)
            client.ping()
            got = bytes(client.streams[1])
            require(got == b"0123456789"[:wanted], f"with credit for {wanted} there came {got!r}")


@check(_GROUP, "a program that writes without end is held up by the lack of credit")
def _held_up(server: Server) -> None:
    with server.own_session(streams=(1,)) as client:
        piece = bytes(64 << 10)
        for count in range(1024):  # 64 MiB at most; pipes and queues on the way hold far less
            number = client.start("write", 1, POINTER, len(piece), ins={1: piece}, tid=7000 + count)
            client.ping()
            client.pump(0 if number in client.results else _PATIENCE)
            if number not in client.results:
                break
        else:
            fail("it goes on writing: 64 MiB, without credit")
        client.send(Cancel(id=number))
        result = client.result(number)
        require(
            result.errno == errno.EINTR or 0 < result.value <= len(piece),
            f"a cancelled write gave {result.value}, errno {result.errno}",
        )


@check(_GROUP, "a large output comes out whole and in order")
def _large(server: Server) -> None:
    data = os.urandom(1 << 16) * 32
    with server.own_session(streams=(1,)) as client:
        sent = taken = number = 0
        client.send(StreamCredit(stream=1, size=50_000))
        while taken < len(data):
            if number in client.results:
                sent += client.result(number).value
                number = 0
            if not number and (piece := data[sent : sent + 100_000]):
                number = client.start("write", 1, POINTER, len(piece), ins={1: piece})
            require(client.pump(server.timeout), f"after {taken} bytes no more comes, though there is credit")
            if fresh := len(client.streams[1]) - taken:
                client.send(StreamCredit(stream=1, size=fresh))
                taken += fresh
        require(client.streams[1] == data, "the output is not what was written")


@check(_GROUP, "what the user types is read, up to its end")
def _in(server: Server) -> None:
    with server.own_session(streams=(0,)) as client:
        client.wait_for("credit for stream 0", lambda: client.credit >= 11)
        client.send(StreamData(stream=0, data=b"hello"))
        require(client.read(0, 100) == b"hello", "other data was read")
        number = client.start("read", 0, POINTER, 100, outs={1: 100})
        client.ping()
        require(number not in client.results, "a read with nothing typed was answered")
        client.send(StreamData(stream=0, data=b" world"))
        require(client.data(client.result(number)) == b" world", "other data was read")
        client.send(StreamEnd(stream=0))
        for _ in range(2):
            require(client.read(0, 100) == b"", "there is data after the end")


@check(_GROUP, "credit for stream 0 comes back as the program reads")
def _in_credit(server: Server) -> None:
    with server.own_session(streams=(0,)) as client:
        total, sent, read = 1 << 20, 0, 0
        while read < total:
            if sent == read:
                client.wait_for("credit for stream 0", lambda: client.credit > 0)
            size = min(client.credit, total - sent)
            if size:
                client.send(StreamData(stream=0, data=bytes(size)))
                client.credit -= size
                sent += size
            read += len(client.read(0, 1 << 20))
        require(read == total, f"{read} bytes were read of {total}")


@check(_GROUP, "input beyond the credit ends the session, and it alone")
def _in_beyond(server: Server) -> None:
    with server.session() as bystander, server.own_session(streams=(0,)) as client:
        client.wait_for("credit for stream 0", lambda: client.credit > 0)
        client.ping()
        over = min(client.credit + 1, 8 << 20)
        if over <= client.credit:
            skip("the credit is more than a message can have")
        client.send(StreamData(stream=0, data=bytes(over)))
        client.require_dropped()
        server.require_alive(bystander)


@check(_GROUP, "streams that the host does not carry are empty and take all")
def _none(server: Server) -> None:
    with server.own_session(streams=()) as client:
        require(client.read(0, 10) == b"", "stream 0 has data")
        require(client.write(1, b"x" * 1000) == 1000, "stream 1 does not take all")
        client.ping()
        require(not client.streams, "data came of a stream that the host does not carry")


@check(_GROUP, "all output comes before the goodbye")
def _last_words(server: Server) -> None:
    with server.own_session(streams=(1, 2)) as client:
        client.send(StreamCredit(stream=1, size=10_000))
        client.send(StreamCredit(stream=2, size=10_000))
        number = client.start("write", 1, POINTER, 5000, ins={1: b"x" * 5000})
        client.write(2, b"last words")
        require(client.result(number).value == 5000, "the pipe took less than 5000 bytes")
        client.send(Exited(status=0))
        client.goodbye()
        got = {stream: bytes(data) for stream, data in client.streams.items()}
        require(got == {1: b"x" * 5000, 2: b"last words"}, "output is missing")


@check(_GROUP, "a program can close and replace its streams")
def _replaced(server: Server) -> None:
    with server.own_session(streams=(1,)) as client:
        client.send(StreamCredit(stream=1, size=1000))
        reader, writer = client.pipe()
        spare = client.do("dup", 1).value
        client.do("dup3", writer, 1, 0)
        client.write(1, b"into the pipe")
        require(client.read(reader, 100) == b"into the pipe", "descriptor 1 is not the pipe")
        client.write(spare, b"out")
        client.expect_output(1, 3)
        require(client.streams[1] == b"out", f"there came {client.streams[1]!r}")


@check(_GROUP, "a user's terminal is a terminal to the program, with its size")
def _terminal(server: Server) -> None:
    terminal = Terminal(rows=31, columns=99, name="xterm")
    with server.session(streams=(0, 1, 2), terminal=terminal) as client:
        if client.welcome.resources != "server":
            skip("the program's resources are the host's")
        if client.call("ioctl", 1, _TCGETS, POINTER, outs={2: 36}).errno:
            skip("the server makes no terminals")

        def size() -> tuple[int, ...]:
            data = client.structure(client.do("ioctl", 1, _TIOCGWINSZ, POINTER, outs={2: 8}), 2, 8)
            return struct.unpack("4H", data)[:2]

        require(size() == (31, 99), f"the size is {size()}")
        client.send(WindowSize(rows=10, columns=20))
        client.ping()
        require(size() == (10, 20), f"after the change the size is {size()}")
        client.send(StreamCredit(stream=1, size=1000))
        client.write(1, b"line\n")
        client.wait_for("output", lambda: b"line" in client.streams[1])
        client.wait_for("credit for stream 0", lambda: client.credit >= 5)
        client.send(StreamData(stream=0, data=b"word\n"))
        require(client.read(0, 100) == b"word\n", "the line that was typed is not what is read")


CHECKS: tuple[Check, ...] = (
    _out,
    _credit,
    _held_up,
    _large,
    _in,
    _in_credit,
    _in_beyond,
    _none,
    _last_words,
    _replaced,
    _terminal,
)
