"""Checks of what happens before there is a session."""

import msgspec

from ptserver.conformance.checks import Check, Server, check, fail, require, skip
from ptserver.conformance.client import RawClient
from ptserver.errors import RefusedError
from ptserver.messages import (
    CODECS,
    PROTOCOL_VERSION,
    Hello,
    Refused,
    Watch,
    WatchEnded,
    WatcherHello,
    WatcherWelcome,
    Welcome,
)
from ptserver.net.wire import MAX_HELLO_BYTES

_GROUP = "handshake"


def _say(server: Server, hello: Hello | dict[str, object]) -> Welcome | Refused | None:
    with server.raw() as client:
        client.send_frame(msgspec.json.encode(hello))
        return client.answer()


def _fields(server: Server) -> dict[str, object]:
    fields: dict[str, object] = msgspec.json.decode(msgspec.json.encode(server.hello()))
    return fields


def _require_refused(answer: Welcome | Refused | None, code: str) -> None:
    if not isinstance(answer, Refused):
        fail(f"expected a refusal with code {code!r}, got {answer and 'a welcome'}")
    require(answer.code == code, f"expected code {code!r}, got {answer.code!r}")
    require(answer.message and "\n" not in answer.message, "the refusal's message is not one line")


def _require_dropped(client: RawClient) -> None:
    answer = client.answer()
    if answer is not None:
        _require_refused(answer, "malformed")
        require(client.answer() is None, "the server says something after its refusal")


@check(_GROUP, "a hello is welcomed")
def _welcome(server: Server) -> None:
    answer = _say(server, server.hello())
    if not isinstance(answer, Welcome):
        fail(f"expected a welcome, got {answer}")
    require(answer.version == PROTOCOL_VERSION, f"the welcome names version {answer.version}")
    require(answer.codec in CODECS, f"the welcome names codec {answer.codec!r}")
    for name in ("server", "software", "session", "host", "abstraction"):
        require(getattr(answer, name), f"the welcome's {name} is empty")
    for entry in answer.environment or ():
        require(b"=" in entry[1:] and b"\0" not in entry, f"the environment has an entry {entry!r}")


@check(_GROUP, "sessions have names of their own")
def _session_names(server: Server) -> None:
    with server.session() as one, server.session() as two:
        require(one.welcome.session != two.welcome.session, "two sessions have the same name")


@check(_GROUP, "JSON is always spoken")
def _json(server: Server) -> None:
    with server.session(codecs=("json",)) as client:
        require(client.welcome.codec == "json", f"the welcome names codec {client.welcome.codec!r}")
        client.ping()


@check(_GROUP, "MessagePack is spoken, or refused clearly")
def _msgpack(server: Server) -> None:
    try:
        with server.session(codecs=("msgpack",)) as client:
            require(client.welcome.codec == "msgpack", f"the welcome names codec {client.welcome.codec!r}")
            client.ping()
    except RefusedError as error:
        require(error.code == "codec", f"expected code 'codec', got {error.code!r}")
        skip("the server does not speak it")


@check(_GROUP, "the host's first codec that the server knows is taken")
def _codec_order(server: Server) -> None:
    for codecs in (("json", "msgpack"), ("nonsense", "json")):
        with server.session(codecs=codecs) as client:
            require(client.welcome.codec == "json", f"of {codecs} the server took {client.welcome.codec!r}")
            client.ping()


@check(_GROUP, "codecs that nobody knows are refused")
def _codec_refusal(server: Server) -> None:
    _require_refused(_say(server, _fields(server) | {"codecs": ["nonsense"]}), "codec")


@check(_GROUP, "the version is found among several")
def _versions(server: Server) -> None:
    answer = _say(server, _fields(server) | {"versions": [65535, PROTOCOL_VERSION]})
    require(isinstance(answer, Welcome) and answer.version == PROTOCOL_VERSION, f"got {answer}")


@check(_GROUP, "versions that the server does not speak are refused")
def _version_refusal(server: Server) -> None:
    _require_refused(_say(server, _fields(server) | {"versions": [65535]}), "version")


@check(_GROUP, "a later version is refused as such, however its hello looks")
def _later_hello(server: Server) -> None:
    _require_refused(_say(server, {"type": "hello", "versions": [65535], "codecs": {"later": 1}}), "version")


@check(_GROUP, "an OS abstraction that the server lacks is refused")
def _abstraction(server: Server) -> None:
    hello = server.hello()
    program = msgspec.structs.replace(hello.program, abstraction="no-such-abstraction")
    _require_refused(_say(server, msgspec.structs.replace(hello, program=program)), "abstraction")


@check(_GROUP, "a wrong token is refused")
def _token(server: Server) -> None:
    if not server.token:
        skip("no --token")
    for token in ("", server.token + "x", server.token[:-1]):
        _require_refused(_say(server, msgspec.structs.replace(server.hello(), token=token)), "token")


@check(_GROUP, "unknown fields are ignored")
def _unknown_fields(server: Server) -> None:
    answer = _say(server, _fields(server) | {"later": {"a": [1, None]}})
    require(isinstance(answer, Welcome), f"got {answer}")


_MALFORMED = {
    "is not JSON": b"\x81\xa4type\xa5hello",
    "is cut off": b'{"type":"hello","versions":[1]',
    "has no program": b'{"type":"hello","versions":[1],"codecs":["json"]}',
    "has text for its versions": b'{"type":"hello","versions":"1","codecs":["json"]}',
    "is another message": b'{"type":"ping","id":1}',
    "has no type": b'{"versions":[1],"codecs":["json"]}',
}


def _malformed(title: str, payload: bytes) -> Check:
    def run(server: Server) -> None:
        with server.session() as bystander:
            with server.raw() as client:
                client.send_frame(payload)
                _require_dropped(client)
            server.require_alive(bystander)

    return Check(_GROUP, f"a hello that {title} ends the connection, and it alone", run)


@check(_GROUP, "an oversize hello ends the connection before it has come")
def _oversize(server: Server) -> None:
    for header in ((MAX_HELLO_BYTES + 1).to_bytes(4, "big"), b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"):
        with server.raw() as client:
            client.send(header)
            _require_dropped(client)
    with server.session() as client:
        client.ping()


@check(_GROUP, "an empty frame ends the connection")
def _empty(server: Server) -> None:
    with server.raw() as client:
        client.send(bytes(4))
        _require_dropped(client)


@check(_GROUP, "a hello may come in pieces")
def _pieces(server: Server) -> None:
    payload = msgspec.json.encode(server.hello())
    with server.raw() as client:
        for byte in len(payload).to_bytes(4, "big") + payload:
            client.send(bytes([byte]))
        answer = client.answer()
        require(isinstance(answer, Welcome), f"got {answer}")


@check(_GROUP, "hosts that leave in the middle of a hello disturb nobody")
def _truncated(server: Server) -> None:
    payload = msgspec.json.encode(server.hello())
    frame = len(payload).to_bytes(4, "big") + payload
    with server.session() as bystander:
        for length in (0, 2, 4, 5, len(frame) - 1, len(frame)):
            with server.raw() as client:
                client.send(frame[:length])
        server.require_alive(bystander)


@check(_GROUP, "a watcher is welcomed, or refused clearly")
def _watcher(server: Server) -> None:
    hello = WatcherHello((PROTOCOL_VERSION,), CODECS, "ptserver conformance", server.token)
    with server.raw() as client:
        client.send_frame(msgspec.json.encode(hello))
        answer = client.answer_as(WatcherWelcome | Refused)
        if isinstance(answer, Refused):
            require(answer.message and "\n" not in answer.message, "the refusal's message is not one line")
            skip("its sessions cannot be watched")
        if not isinstance(answer, WatcherWelcome):
            fail(f"expected a welcome or a refusal, got {answer}")
        require(answer.codec in CODECS, f"the welcome names codec {answer.codec!r}")


@check(_GROUP, "a watcher finds a session, and is told what there is not")
def _watched_session(server: Server) -> None:
    hello = WatcherHello((PROTOCOL_VERSION,), ("json",), "ptserver conformance", server.token)
    with server.session() as session, server.raw() as client:
        client.send_frame(msgspec.json.encode(hello))
        answer = client.answer_as(WatcherWelcome | Refused)
        if isinstance(answer, Refused):
            skip("its sessions cannot be watched")
        assert isinstance(answer, WatcherWelcome)
        names = [facts.id for facts in answer.sessions]
        require(session.welcome.session in names, f"the session is not among {names}")
        client.send_frame(msgspec.json.encode(Watch(7, "trace", "no such session")))
        ended = client.answer_as(WatchEnded | Refused)
        require(isinstance(ended, WatchEnded) and ended.id == 7 and ended.problem, f"got {ended}")


CHECKS: tuple[Check, ...] = (
    _welcome,
    _session_names,
    _json,
    _msgpack,
    _codec_order,
    _codec_refusal,
    _versions,
    _version_refusal,
    _later_hello,
    _abstraction,
    _token,
    _watcher,
    _watched_session,
    _unknown_fields,
    *(_malformed(title, payload) for title, payload in _MALFORMED.items()),
    _oversize,
    _empty,
    _pieces,
    _truncated,
)
