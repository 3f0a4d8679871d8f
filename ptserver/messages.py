"""The messages of the API, between a stub host and a runtime server.

Each message is a msgspec struct with a ``type`` tag; `docs/protocol/` is generated from this module, so the
docstrings here are the published description. All numbers that a register carries are unsigned 64-bit.
Bytes are raw in MessagePack and base64 in JSON. Unknown fields are ignored, so that a minor version can add
some; unknown types are an error.

The order: the host sends `Hello` and the server answers `Welcome` or `Refused`, always in JSON; from then on
both use the codec that the welcome names. After the welcome either side may send what `ToServer` and `ToHost`
allow it, at any time, until the host has sent `Exited` and the server has answered `Goodbye`.
"""

from typing import Literal

import msgspec

#: The version of the protocol that this module describes. Peers must agree on it.
PROTOCOL_VERSION = 1

#: Codecs by preference, best first.
CODECS: tuple[str, ...] = ("msgpack", "json")

Interest = Literal["ignore", "observe", "serve"]
StreamId = Literal[0, 1, 2]


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower, omit_defaults=True):
    """Base of all messages; its JSON object's ``type`` is the class name in lower case."""


class Terminal(msgspec.Struct, frozen=True):
    """The user's terminal. rows, columns: characters; name: the value of TERM."""

    rows: int
    columns: int
    name: str = ""


class Machine(msgspec.Struct, frozen=True):
    """The stub host's machine. arch: ``amd64`` or ``arm64``; cpu_features: names as in /proc/cpuinfo."""

    arch: str
    kernel: str
    hostname: str
    cpu_features: tuple[str, ...] = ()


class Program(msgspec.Struct, frozen=True):
    """What is going to run.

    path: its file at the stub host; argv: its arguments, argv[0] included; build_id: Go's or GNU's, or empty;
    abstraction: the OS abstraction that it was built for (GOOSREMOTE); stub: whether it has the stub.
    """

    path: str
    argv: tuple[str, ...]
    build_id: str = ""
    abstraction: str = "linux"
    stub: bool = False


class Hello(Message, frozen=True):
    """Host to server, first, in JSON: who asks for a session, for which program.

    versions: protocol versions that the host speaks; codecs: those it speaks, best first; streams: which of
    the standard streams the host will carry (the others are /dev/null); terminal: set if they are a terminal;
    token: the secret that the server wants, or empty.
    """

    versions: tuple[int, ...]
    codecs: tuple[str, ...]
    software: str
    machine: Machine
    program: Program
    token: str = ""
    streams: tuple[StreamId, ...] = (0, 1, 2)
    terminal: Terminal | None = None


class Welcome(Message, frozen=True):
    """Server to host, in JSON: the session is open.

    resources: ``server`` if the program's files and descriptors are the server's; ``host`` if they are the
    stub host's own and the server only answers what `interest` names.
    interest: what the server wants of each syscall by name; `default_interest` holds for the other calls that
    touch resources. environment: the program's, as ``NAME=VALUE``, or None for the host's own.
    """

    version: int
    codec: str
    server: str
    software: str
    session: str
    host: str
    resources: Literal["server", "host"]
    interest: dict[str, Interest]
    default_interest: Interest = "ignore"
    abstraction: str = "linux"
    environment: tuple[bytes, ...] | None = None


class Refused(Message, frozen=True):
    """Server to host, instead of a welcome, or before closing on an error.

    code: ``version``, ``codec``, ``abstraction``, ``token``, ``limit``, ``malformed`` or ``internal``;
    message: one line for the user.
    """

    code: str
    message: str


class Syscall(Message, frozen=True):
    """Host to server: a thread of the program makes a call that the server serves; it waits for `Result`.

    id: unique among the calls in flight, above 0; tid: the calling thread, pid: its process, at the host;
    name: the call's name on Linux; args: its six registers. ins: by argument index, the bytes that it reads
    (paths without their NUL; iovecs joined; string vectors joined by NUL bytes); outs: by argument index, how
    many bytes it may fill.
    """

    id: int
    tid: int
    pid: int
    name: str
    args: tuple[int, int, int, int, int, int]
    ins: dict[int, bytes] = {}
    outs: dict[int, int] = {}


class Result(Message, frozen=True):
    """Server to host: the answer to `Syscall`.

    value: what the call returns (signed 64-bit), if errno is 0; outs: by argument index, the bytes to put
    into the program's memory, never more than were offered. proceed: let the thread make its call on the stub
    host, unchanged; only where resources are the host's.
    """

    id: int
    value: int = 0
    errno: int = 0
    outs: dict[int, bytes] = {}
    proceed: bool = False


class Observed(Message, frozen=True):
    """Host to server: a thread makes a call that the server only observes; nobody waits.

    The fields are those of `Syscall`.
    """

    tid: int
    pid: int
    name: str
    args: tuple[int, int, int, int, int, int]
    ins: dict[int, bytes] = {}


class Cancel(Message, frozen=True):
    """Host to server: the thread no longer waits for call *id*.

    The server interrupts the call and answers all the same, with what it did or with EINTR.
    """

    id: int


class StreamData(Message, frozen=True):
    """Either way: bytes of a standard stream (0 to the program, 1 and 2 from it), within the credit given."""

    stream: StreamId
    data: bytes


class StreamCredit(Message, frozen=True):
    """Either way: the sender of this can take *size* more bytes of the stream."""

    stream: StreamId
    size: int


class StreamEnd(Message, frozen=True):
    """Either way: no more data on the stream; for stream 0 the program will read end of file."""

    stream: StreamId


class WindowSize(Message, frozen=True):
    """Host to server: the user's terminal changed its size."""

    rows: int
    columns: int


class Signal(Message, frozen=True):
    """Server to host: deliver signal *signo* (Linux number) to the program."""

    signo: int


class ThreadEvent(Message, frozen=True):
    """Host to server: a thread was ``created`` or has ``exited``."""

    tid: int
    event: Literal["created", "exited"]


class Exited(Message, frozen=True):
    """Host to server: the program is gone. status: its exit status, or None if *signo* killed it."""

    status: int | None
    signo: int = 0


class Goodbye(Message, frozen=True):
    """Server to host: answer to `Exited`, after the last stream data; both close."""


class Ping(Message, frozen=True):
    """Either way: are you there? *id* comes back in a `Pong`."""

    id: int


class Pong(Message, frozen=True):
    """Either way: the answer to a `Ping`."""

    id: int


ToServer = (
    Hello
    | Syscall
    | Observed
    | Cancel
    | StreamData
    | StreamCredit
    | StreamEnd
    | WindowSize
    | ThreadEvent
    | Exited
    | Ping
    | Pong
)
ToHost = Welcome | Refused | Result | StreamData | StreamCredit | StreamEnd | Signal | Goodbye | Ping | Pong
