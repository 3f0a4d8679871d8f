"""Checks of calls: ids, order, many at once, waiting and cancelling. For servers that have the resources."""

import errno
import os
import struct

from ptserver.conformance.caller import AT_FDCWD, Caller
from ptserver.conformance.checks import Check, Server, check, fail, interest_in, require, skip
from ptserver.conformance.client import POINTER
from ptserver.messages import Cancel, Result

_GROUP = "calls"


def _require_errno(result: Result, *allowed: int) -> None:
    names = " or ".join(errno.errorcode[number] for number in allowed)
    got = errno.errorcode.get(result.errno, str(result.errno)) if result.errno else f"value {result.value}"
    require(result.errno in allowed, f"expected {names}, got {got}")


@check(_GROUP, "a call that the server does not know gets ENOSYS, and the session goes on")
def _unknown(server: Server) -> None:
    with server.session() as client:
        _require_errno(client.call("no_such_call", 1, 2, 3), errno.ENOSYS)
        _require_errno(client.call("Ünïcode\n", 1), errno.ENOSYS)
        client.ping()


@check(_GROUP, "a server that has the resources wants the calls on them")
def _interest(server: Server) -> None:
    with server.own_session() as client:
        for name in ("openat", "read", "write", "close", "getcwd"):
            require(interest_in(client.welcome, name) == "serve", f"{name} is not served")


@check(_GROUP, "an answer carries its call's id")
def _ids(server: Server) -> None:
    with server.own_session() as client:
        for _ in range(3):
            number = client.start("close", 0xFFFF)
            result = client.result(number)
            require(result.id == number, f"call {number} was answered as {result.id}")
            _require_errno(result, errno.EBADF)


@check(_GROUP, "errors are errno values, and leave value alone")
def _errors(server: Server) -> None:
    with server.own_session() as client:
        _require_errno(
            client.call("openat", AT_FDCWD, POINTER, 0, 0, ins={1: b"/no/such/file"}), errno.ENOENT
        )
        _require_errno(client.call("read", -1, POINTER, 1, outs={1: 1}), errno.EBADF)
        _require_errno(client.call("openat", AT_FDCWD, POINTER, 0, 0, ins={1: b""}), errno.ENOENT)


@check(_GROUP, "a pointer without its buffer is EFAULT, not an address at the server")
def _no_buffer(server: Server) -> None:
    with server.own_session() as client:
        reader, writer = client.pipe()
        _require_errno(client.call("openat", AT_FDCWD, POINTER, 0, 0), errno.EFAULT)
        _require_errno(client.call("write", writer, POINTER, 4), errno.EFAULT)
        client.write(writer, b"data")
        _require_errno(client.call("read", reader, POINTER, 4), errno.EFAULT)
        client.ping()


@check(_GROUP, "no answer has more bytes than the call has room for")
def _room(server: Server) -> None:
    with server.own_session() as client:
        reader, writer = client.pipe()
        client.write(writer, b"x" * 100)
        result = client.call("read", reader, POINTER, 100, outs={1: 10})  # the client counts the bytes
        require(result.errno or result.value <= 10, f"the call says {result.value}, with a room of 10")
        result = client.call("getcwd", POINTER, 4096, outs={0: 1})
        require(result.errno or result.value <= 1, f"getcwd says {result.value}, with a room of 1")


@check(_GROUP, "a path does not end at the server's limits but at its own")
def _long_path(server: Server) -> None:
    with server.own_session() as client:
        long = b"/" + b"x" * 5000
        _require_errno(client.call("openat", AT_FDCWD, POINTER, 0, 0, ins={1: long}), errno.ENAMETOOLONG)
        result = client.call("openat", AT_FDCWD, POINTER, os.O_RDONLY, 0, ins={1: b"/\0/no/such"})
        if not result.errno:
            client.close_fd(result.value)
        client.ping()


def _blocked_read(client: Caller) -> tuple[int, int, int]:
    """A read of an empty pipe: its ends and the call's id."""
    reader, writer = client.pipe()
    number = client.start("read", reader, POINTER, 10, outs={1: 10}, tid=5000)
    return reader, writer, number


@check(_GROUP, "a call that waits holds up no other, and ends when it can")
def _waiting(server: Server) -> None:
    with server.own_session() as client:
        _, writer, number = _blocked_read(client)
        client.ping()
        _require_errno(client.call("close", 0xFFFF), errno.EBADF)
        require(number not in client.results, "a read of an empty pipe was answered")
        client.write(writer, b"late")
        data = client.data(client.result(number))
        require(data == b"late", f"the read gave {data!r}")


@check(_GROUP, "a hundred calls can wait at once")
def _many_waiting(server: Server) -> None:
    with server.own_session() as client:
        waiting = [_blocked_read(client) for _ in range(100)]
        for index, (_, writer, _) in reversed([*enumerate(waiting)]):
            client.write(writer, b"%d" % index)
        for index, (_, _, number) in enumerate(waiting):
            data = client.data(client.result(number))
            require(data == b"%d" % index, f"read {index} gave {data!r}")


@check(_GROUP, "two hundred calls in flight are each answered once, with their own data")
def _in_flight(server: Server) -> None:
    with server.own_session() as client:
        reader, writer = client.pipe()
        data = os.urandom(200 * 16)
        with server.folder(client) as folder:
            fd = client.open(folder + b"/file", os.O_RDWR | os.O_CREAT)
            client.write(fd, data)
            numbers = {
                client.start("pread64", fd, POINTER, 16, offset, outs={1: 16}, tid=6000 + offset): offset
                for offset in range(0, len(data), 16)
            }
            for number, offset in numbers.items():
                got = client.data(client.result(number))
                require(got == data[offset : offset + 16], f"the call at offset {offset} got other data")
            client.ping()
            require(not client.results, f"calls {[*client.results]} were answered twice or never made")
        for fd in (reader, writer):
            client.close_fd(fd)


@check(_GROUP, "a call that waits can be cancelled, and loses nothing")
def _cancel(server: Server) -> None:
    with server.own_session() as client:
        reader, writer, number = _blocked_read(client)
        client.ping()
        client.send(Cancel(id=number))
        _require_errno(client.result(number), errno.EINTR)
        client.write(writer, b"kept")
        require(client.read(reader, 10) == b"kept", "what was written after the cancel is lost")


@check(_GROUP, "a cancel may come at any time: every call is answered just once")
def _cancel_races(server: Server) -> None:
    with server.own_session() as client:
        reader, writer = client.pipe()
        read = 0
        for _ in range(50):
            number = client.start("read", reader, POINTER, 1, outs={1: 1})
            client.connection.send(Cancel(id=number))
            client.connection.send(Cancel(id=number))
            client.write(writer, b"x")
            result = client.result(number)
            if result.errno:
                _require_errno(result, errno.EINTR)
            read += result.value if not result.errno else 0
        left = len(client.read(reader, 100)) if read < 50 else 0
        require(read + left == 50, f"of 50 bytes {read} were read and {left} are left")
        client.ping()
        require(not client.results, "a call was answered twice")


@check(_GROUP, "epoll, eventfd and pipes work together")
def _epoll(server: Server) -> None:
    with server.own_session() as client:
        reader, writer = client.pipe()
        event = client.do("eventfd2", 0, os.O_CLOEXEC | os.O_NONBLOCK).value
        epoll = client.do("epoll_create1", os.O_CLOEXEC).value
        for fd, mark in ((reader, 111), (event, 222)):
            client.do("epoll_ctl", epoll, 1, fd, POINTER, ins={3: struct.pack("<IQ", 1, mark)})

        def ready(timeout: int) -> set[int]:
            outs = {1: 12 * 8}
            result = client.do("epoll_pwait", epoll, POINTER, 8, timeout, 0, 8, outs=outs)
            data = client.structure(result, 1, 12 * result.value)
            return {struct.unpack_from("<IQ", data, 12 * place)[1] for place in range(result.value)}

        require(ready(0) == set(), "something is ready before anything was written")
        client.write(event, struct.pack("<Q", 1))
        require(ready(-1) == {222}, "the eventfd is not ready")
        client.write(writer, b"x")
        require(ready(-1) == {111, 222}, "the pipe is not ready")
        client.read(reader, 10)
        client.read(event, 8)
        number = client.start("epoll_pwait", epoll, POINTER, 8, -1, 0, 8, outs={1: 12 * 8}, tid=5001)
        client.ping()
        require(number not in client.results, "epoll_pwait returned with nothing ready")
        client.write(writer, b"y")
        require(client.result(number).value == 1, "epoll_pwait did not see the pipe")


@check(_GROUP, "sessions share no descriptors")
def _isolation(server: Server) -> None:
    with server.own_session() as one, server.own_session() as two:
        reader, writer = one.pipe()
        one.write(writer, b"secret")
        for fd in (reader, writer):
            _require_errno(two.call("fstat", fd, POINTER, outs={1: 144}), errno.EBADF)
        two.close()
        if one.read(reader, 10) != b"secret":
            fail("the data is gone")


@check(_GROUP, "for a server with the host's resources, calls of its interest are answered")
def _hosts_resources(server: Server) -> None:
    with server.session() as client:
        if client.welcome.resources == "server":
            skip("the program's resources are the server's")
        for name in (name for name, wanted in client.welcome.interest.items() if wanted == "serve"):
            client.call(name)


CHECKS: tuple[Check, ...] = (
    _unknown,
    _interest,
    _ids,
    _errors,
    _no_buffer,
    _room,
    _long_path,
    _waiting,
    _many_waiting,
    _in_flight,
    _cancel,
    _cancel_races,
    _epoll,
    _isolation,
    _hosts_resources,
)
