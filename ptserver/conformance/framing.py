"""Checks of frames and messages within a session, and of its end."""

from ptserver.conformance.checks import Check, Server, check, kinds, require
from ptserver.conformance.client import POINTER
from ptserver.errors import ConnectionLostError
from ptserver.messages import (
    MAX_TRANSFER_BYTES,
    Cancel,
    Exited,
    Goodbye,
    Observed,
    Ping,
    Pong,
    ThreadEvent,
    WindowSize,
)
from ptserver.net.wire import MAX_FRAME_BYTES

_GROUP = "framing"
_CALL = {"type": "syscall", "id": 1, "tid": 2, "pid": 2, "name": "close", "args": [0xFFFF, 0, 0, 0, 0, 0]}


@check(_GROUP, "a ping is answered with its id")
def _ping(server: Server) -> None:
    with server.session() as client:
        for number in (1, 77, (1 << 53) - 1):
            client.send(Ping(id=number))
            client.expect(Pong(id=number))
        require(len(client.others) == 3, f"besides three pongs there came {kinds(client.others)}")


@check(_GROUP, "a thousand frames in one write are all answered, in order")
def _batch(server: Server) -> None:
    with server.session() as client:
        for number in range(1, 1001):
            client.connection.send(Ping(id=number))
        client.connection.drain(server.timeout)
        client.wait_for("1000 pongs", lambda: len(client.others) >= 1000)
        require([*client.others] == [Pong(id=number) for number in range(1, 1001)], "pongs are out of order")


@check(_GROUP, "a frame may come in pieces")
def _pieces(server: Server) -> None:
    with server.session() as client:
        for byte in client.connection.codec.encode(Ping(id=5)):
            client.send_raw(bytes([byte]))
        client.expect(Pong(id=5))


@check(_GROUP, "unknown fields are ignored")
def _unknown_fields(server: Server) -> None:
    with server.session() as client:
        client.send_payload(client.encode({"type": "ping", "id": 5, "later": {"a": [1, None, "x"]}}))
        client.expect(Pong(id=5))


@check(_GROUP, "what needs no answer gets none")
def _silent(server: Server) -> None:
    with server.session() as client:
        client.send(ThreadEvent(tid=4243, event="created"))
        client.send(
            Observed(tid=4243, pid=4242, name="openat", args=(3, POINTER, 0, 0, 0, 0), ins={1: b"/x"})
        )
        client.send(Observed(tid=4243, pid=4242, name="no_such_call", args=(0,) * 6))
        client.send(ThreadEvent(tid=4243, event="exited"))
        client.send(WindowSize(rows=50, columns=132))
        client.send(Cancel(id=12345))
        client.ping()
        require(not client.others, f"there came {kinds(client.others)}")
        require(not client.results, f"calls {[*client.results]} were answered that nobody made")


_DROPPED: dict[str, dict[str, object]] = {
    "an unknown type": {"type": "no_such_message"},
    "no type": {"id": 1},
    "a number for its type": {"type": 7},
    "the type of a server's message": {"type": "result", "id": 1},
    "the type of a hello": {"type": "hello", "versions": [1], "codecs": ["json"]},
    "an id of 0": _CALL | {"id": 0},
    "text for a number": _CALL | {"tid": "2"},
    "five registers": _CALL | {"args": [0] * 5},
    "a negative register": _CALL | {"args": [-1, 0, 0, 0, 0, 0]},
    "a call without a name": _CALL | {"name": ""},
    "an argument index of 6": _CALL | {"outs": {6: 1}},
    "an out-buffer beyond the limit": _CALL | {"outs": {1: MAX_TRANSFER_BYTES + 1}},
    "a stream 3": {"type": "streamend", "stream": 3},
    "credit of 0": {"type": "streamcredit", "stream": 1, "size": 0},
    "data for a stream that is the server's": {"type": "streamdata", "stream": 1, "data": b"x"},
}


def _dropped(what: str, fields: dict[str, object]) -> Check:
    def run(server: Server) -> None:
        with server.dropped() as client:
            client.send_payload(client.encode(fields))

    return Check(_GROUP, f"a message with {what} ends the session, and it alone", run)


_BROKEN = {
    "a malformed payload": b"\0\0\0\x05\xc1\xc1\xc1\xc1\xc1",
    "an empty frame": b"\0\0\0\0",
    "an oversize frame": (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    "the largest size": b"\xff\xff\xff\xff" + bytes(1000),
}


def _broken(what: str, data: bytes) -> Check:
    def run(server: Server) -> None:
        with server.dropped() as client:
            client.send_raw(data)

    return Check(_GROUP, f"{what} ends the session, and it alone", run)


@check(_GROUP, "deep nesting ends the session, and it alone")
def _nesting(server: Server) -> None:
    with server.dropped() as client:
        deep = b"[" if client.connection.codec.name == "json" else b"\x91"
        client.send_payload(deep * 1_000_000)


@check(_GROUP, "a call with the id of one in flight ends the session, and it alone")
def _same_id(server: Server) -> None:
    with server.own_session() as bystander, server.own_session() as client:
        reader, _ = client.pipe()
        call = client.make_call("read", reader, POINTER, 10, outs={1: 10})
        client.send(call)
        client.ping()
        client.send(call)
        client.require_dropped()
        server.require_alive(bystander)


@check(_GROUP, "a host that leaves within a frame disturbs nobody")
def _truncated(server: Server) -> None:
    with server.session() as bystander:
        for data in (b"\0", b"\0\0\0\x09", b"\0\0\0\x09{", MAX_FRAME_BYTES.to_bytes(4, "big") + bytes(9)):
            with server.session() as client:
                client.send_raw(data)
        server.require_alive(bystander)


def _end(exited: Exited, title: str) -> Check:
    def run(server: Server) -> None:
        with server.session() as bystander, server.session() as client:
            client.send(exited)
            client.goodbye()
            try:
                while client.pump(server.timeout):
                    pass
                require(False, "the server does not close after its goodbye")
            except ConnectionLostError:
                pass
            require([*client.others] == [Goodbye()], f"with the goodbye there came {kinds(client.others)}")
            bystander.ping()

    return Check(_GROUP, title, run)


CHECKS: tuple[Check, ...] = (
    _ping,
    _batch,
    _pieces,
    _unknown_fields,
    _silent,
    *(_dropped(what, fields) for what, fields in _DROPPED.items()),
    *(_broken(what, data) for what, data in _BROKEN.items()),
    _nesting,
    _same_id,
    _truncated,
    _end(Exited(status=3), "a program that exits is taken leave of, and then the server closes"),
    _end(Exited(status=None, signo=9), "so is a program that a signal killed"),
)
