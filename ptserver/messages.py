"""The messages of the API, between a stub host and a runtime server.

Each message is a msgspec struct with a ``type`` tag; `docs/protocol/` is generated from this module, so the
docstrings here are the published description. All numbers that a register carries are unsigned 64-bit.
Bytes are raw in MessagePack and base64 in JSON. Unknown fields are ignored, so that a minor version can add
some; unknown types are an error. Every number, string, list and map has a bound, stated in its type, which
decoding enforces: a peer is not trusted.

The order: the host sends `Hello` and the server answers `Welcome` or `Refused`, always in JSON; from then on
both use the codec that the welcome names. After the welcome either side may send what `ToServer` and `ToHost`
allow it, at any time, until the host has sent `Exited` and the server has answered `Goodbye`. A host that waits for
a program says its hello when a server has sent it an `Offer`. A session that was kept when its connection was lost
goes on by a new one that begins with `Resume`. A watcher begins with `WatcherHello`, which is answered by
`WatcherWelcome`; then it may send what `FromWatcher` allows, and gets what `ToWatcher` does.
"""

import os
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta

from stepping.remote_memory import AtomicOperation
from stepping.syscalls import marshal

#: The version of the protocol that this module describes. Peers must agree on it.
PROTOCOL_VERSION = 1

#: Codecs by preference, best first.
CODECS: tuple[str, ...] = ("msgpack", "json")

#: The most bytes that one call may carry in each direction, all its buffers together.
MAX_TRANSFER_BYTES = marshal.MAX_TRANSFER_BYTES

#: The most entries of an environment, or arguments of a program, and the bytes of one (Linux: MAX_ARG_STRLEN).
MAX_ENVIRONMENT_ENTRIES, MAX_ENVIRONMENT_ENTRY_BYTES = 1 << 16, 128 << 10

#: The most program arguments that a `Hello` shows, and how much of it they may fill, in bytes of JSON.
MAX_SHOWN_ARGUMENTS, MAX_SHOWN_ARGUMENT_BYTES = 1024, 24 << 10

#: The most goroutines of one `GoroutineStatistics`, sessions of a `WatcherWelcome`, and calls of a `WatchedCalls`.
MAX_STATISTICS, MAX_LISTED_SESSIONS, MAX_WATCHED_CALLS = 1024, 1000, 1024

#: The most events of one `GoroutineEvents`.
MAX_GOROUTINE_EVENTS = 1024

#: How much may be on its way, in each direction, of a socket that a program reads and writes at its host.
DIRECT_WINDOW_BYTES = 256 << 10

#: The most streams of relays at a time of a session, and the most of one's data that may wait for who reads it.
MAX_RELAY_STREAMS, MAX_RELAY_WINDOW_BYTES = 256, 256 << 10

#: The first number of a relay's stream, above the standard streams; the most descriptors that one stands for.
FIRST_RELAY, MAX_RELAY_NUMBERS = 3, 1024

#: The most bytes that a watcher is shown of a name or buffer.
MAX_WATCHED_BYTES = 4096

Interest = Literal["ignore", "observe", "serve"]
StreamId = Literal[0, 1, 2]
#: A standard stream, or above those a stream of a `Relay`.
StreamNumber = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
DescriptorKind = Literal["file", "tcp", "unix", "pipe", "terminal", "epoll"]

#: What a register holds.
U64 = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": (1 << 64) - 1})]
#: Numbers that every JSON reader keeps exactly.
RequestId = Annotated[int, Meta(ge=1, le=(1 << 53) - 1)]
S64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
ThreadId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Errno = Annotated[int, Meta(ge=0, le=4095)]
SignalNumber = Annotated[int, Meta(ge=0, le=64)]
Cells = Annotated[int, Meta(ge=0, le=65535)]
Descriptor = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
ArgumentIndex = Annotated[int, Meta(ge=0, le=5)]
Seconds = Annotated[int, Meta(ge=0, le=1_000_000)]
Ticket = Annotated[str, Meta(max_length=128)]
SyscallName = Annotated[str, Meta(min_length=1, max_length=64)]
ShortText = Annotated[str, Meta(max_length=255)]
LongText = Annotated[str, Meta(max_length=4096)]
Blob = Annotated[bytes, Meta(max_length=MAX_TRANSFER_BYTES)]
Sha256 = Annotated[str, Meta(min_length=64, max_length=64, pattern="^[0-9a-f]*$")]
VariableName = Annotated[str, Meta(min_length=1, max_length=255)]
VariableSize = Annotated[int, Meta(ge=0, le=1 << 20)]
VariableBytes = Annotated[bytes, Meta(max_length=1 << 20)]
AtomicOperand = Annotated[bytes, Meta(max_length=16)]
Stat = Annotated[bytes, Meta(max_length=256)]
Registers = tuple[U64, U64, U64, U64, U64, U64]
Strings = Annotated[
    tuple[Annotated[bytes, Meta(max_length=MAX_ENVIRONMENT_ENTRY_BYTES)], ...],
    Meta(max_length=MAX_ENVIRONMENT_ENTRIES),
]
_ByIndex = Meta(max_length=6, extra_json_schema={"propertyNames": {"enum": ["0", "1", "2", "3", "4", "5"]}})
Buffers = Annotated[dict[ArgumentIndex, Blob], _ByIndex]
WatchedBuffers = Annotated[
    dict[ArgumentIndex, Annotated[bytes, Meta(max_length=MAX_WATCHED_BYTES)]], _ByIndex
]
Nanoseconds = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
HostNumber = Annotated[int, Meta(ge=0, le=1023)]
Capacities = Annotated[dict[ArgumentIndex, Annotated[int, Meta(ge=0, le=MAX_TRANSFER_BYTES)]], _ByIndex]


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower, omit_defaults=True, gc=False):
    """Base of all messages; its JSON object's ``type`` is the class name in lower case."""


class Terminal(msgspec.Struct, frozen=True):
    """The user's terminal. rows, columns: characters; name: the value of TERM."""

    rows: Cells
    columns: Cells
    name: ShortText = ""


class Machine(msgspec.Struct, frozen=True):
    """The stub host's machine. arch: ``amd64`` or ``arm64``; cpu_features: names as in /proc/cpuinfo."""

    arch: ShortText
    kernel: ShortText
    hostname: ShortText
    cpu_features: Annotated[tuple[ShortText, ...], Meta(max_length=1024)] = ()


class Program(msgspec.Struct, frozen=True):
    """What is going to run.

    path: its file at the stub host; argv: its arguments, argv[0] included; build_id: Go's or GNU's, or empty;
    abstraction: the OS abstraction that it was built for (GOOSREMOTE); stub: whether it has the stub.
    emulated: whether the host emulates it, and wants programs of another architecture that it executes emulated, too.
    path and argv are there to be shown and logged: see `shown`.
    """

    path: LongText
    argv: Annotated[tuple[LongText, ...], Meta(max_length=MAX_SHOWN_ARGUMENTS)]
    build_id: ShortText = ""
    abstraction: ShortText = "linux"
    stub: bool = False
    emulated: bool = False

    @classmethod
    def shown(
        cls,
        path: str | bytes,
        argv: Iterable[str | bytes],
        *,
        build_id: str = "",
        abstraction: str = "linux",
        stub: bool = False,
        emulated: bool = False,
    ) -> Self:
        """Return the description of a program whose path and arguments may be any bytes of any length.

        What is not UTF-8 is replaced by U+FFFD; what is too long for a `Hello` is cut off at its end.
        """
        shown: list[str] = []
        room = MAX_SHOWN_ARGUMENT_BYTES
        for argument in argv:
            text = _text(argument)
            room -= len(msgspec.json.encode(text)) + 1
            if room < 0 or len(shown) == MAX_SHOWN_ARGUMENTS:
                break
            shown.append(text)
        return cls(_text(path), tuple(shown), build_id, abstraction, stub, emulated)


def _text(name: str | bytes) -> str:
    return os.fsencode(name).decode("utf-8", "replace")[:4096]


class Executable(msgspec.Struct, frozen=True):
    """The file of a program. sha256: of all of it, in hexadecimal; arch: ``amd64`` or ``arm64``.

    name: to be shown and logged; build_id: Go's or GNU's, or empty.
    """

    name: LongText
    arch: ShortText
    size_bytes: Annotated[int, Meta(ge=1, le=(1 << 53) - 1)]
    sha256: Sha256
    build_id: LongText = ""


class Offer(Message, frozen=True):
    """Server to host, first, in JSON, if the host waits for programs: there is one for it.

    The host answers with its `Hello`, or with `Refused`. purpose: ``run`` to execute the whole program, ``spread`` to
    execute a part of its threads; a host refuses what it does not know. token: the secret that the host wants, or
    empty. wait_seconds: as in a hello; what the host grants, and the ticket, are in its hello. The other fields are
    as in a hello, where the host then repeats what it chose.
    """

    versions: Annotated[tuple[Annotated[int, Meta(ge=1, le=65535)], ...], Meta(min_length=1, max_length=64)]
    codecs: Annotated[tuple[ShortText, ...], Meta(min_length=1, max_length=16)]
    software: ShortText
    executable: Executable
    token: LongText = ""
    purpose: ShortText = "run"
    wait_seconds: Seconds = 0


GoroutineEventKind = Literal["create", "start", "block", "unblock", "exit", "move"]


class GoroutineEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What has become of a goroutine of a spread program.

    monotonic_ns: when, by the program's clock. what: ``create``, ``start`` (it runs now), ``block`` (it runs no
    more), ``unblock`` (it can run), ``exit``, ``move`` (its thread has come from host *origin*). goid: which;
    function: with which it began, if that is known. host, tid: where it happened, on which thread. What does not run
    is at no host, so of ``create`` and ``unblock`` that is where somebody else did it: the goroutine *by*, if it was
    one. reason: why it blocks, in Go's words.
    """

    monotonic_ns: Nanoseconds
    what: GoroutineEventKind
    goid: U64
    host: HostNumber
    tid: ThreadId
    function: LongText = ""
    by: U64 = 0
    reason: ShortText = ""
    origin: HostNumber = 0


class Use(msgspec.Struct, frozen=True, omit_defaults=True):
    """What goroutines have used, since they or the session began. Processor time and time blocked are estimates.

    cpu_ns, cpu_error_ns: processor time, and its standard deviation at most; blocked_ns: time in which they waited
    for something other than a call; calls: that were seen, errors: how many of them failed; call_ns: the time in
    them; read_bytes, written_bytes: what they brought in and took out.
    """

    cpu_ns: Count = 0
    cpu_error_ns: Count = 0
    blocked_ns: Count = 0
    calls: Count = 0
    errors: Count = 0
    call_ns: Count = 0
    read_bytes: Count = 0
    written_bytes: Count = 0


class GoroutineUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one goroutine has used. goid: 0 for what runs without one; site: where it was created, if known."""

    goid: U64
    use: Use
    site: LongText = ""


class SessionFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """A session. id: its name; program, hostname: what runs, and on which host.

    started_ns: when it began, since 1970.
    """

    id: ShortText
    program: LongText
    hostname: ShortText
    started_ns: Nanoseconds


class WatchedFrame(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call on a goroutine's stack. file and line are empty if nobody knows them."""

    function: LongText
    file: LongText = ""
    line: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] = 0
    pc: U64 = 0


WatchedStack = Annotated[tuple[WatchedFrame, ...], Meta(max_length=256)]


class WatchedCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call that the host took and answered.

    start_ns: by the host's monotonic clock; duration_ns, value: null if the thread made the call itself, for nobody
    saw it end. tid, pid, name, args, goid: as in `Syscall`. ins, outs: the first bytes of what the call read and
    filled. value: what it returned, -1 if it failed with errno. stack: where it was made, an index of
    `WatchedCalls.stacks`; -1: unknown.
    """

    start_ns: Nanoseconds
    tid: ThreadId
    pid: ThreadId
    name: SyscallName
    args: Registers
    duration_ns: Nanoseconds | None = None
    value: S64 | None = None
    errno: Errno = 0
    goid: U64 = 0
    ins: WatchedBuffers = {}
    outs: WatchedBuffers = {}
    stack: Annotated[int, Meta(ge=-1, lt=MAX_WATCHED_CALLS)] = -1


class Hello(Message, frozen=True):
    """Host to server, first, in JSON: who asks for a session, for which program.

    versions: protocol versions that the host speaks; codecs: those it speaks, best first; streams: which of
    the standard streams the host will carry (the others are /dev/null); terminal: set if they are a terminal;
    token: the secret that the server wants, or empty; ahead: whether the host knows `Ahead`;
    server_time: whether the server's clock is to be the program's, so that calls on clocks of the day are served.
    wait_seconds: for how long the session is to be kept when its connection is lost, 0 not to keep it; in the answer
    to an offer that wants it, for how long the host keeps it, and *ticket*: see `Resume`. spread: the program runs on
    several hosts at once and its resources are theirs: the server answers no calls, but may hear of goroutines and
    place them (`GoroutineEvents`).
    """

    versions: Annotated[tuple[Annotated[int, Meta(ge=1, le=65535)], ...], Meta(min_length=1, max_length=64)]
    codecs: Annotated[tuple[ShortText, ...], Meta(min_length=1, max_length=16)]
    software: ShortText
    machine: Machine
    program: Program
    token: LongText = ""
    streams: Annotated[tuple[StreamId, ...], Meta(max_length=3)] = (0, 1, 2)
    terminal: Terminal | None = None
    ahead: bool = False
    server_time: bool = False
    wait_seconds: Seconds = 0
    ticket: Ticket = ""
    spread: bool = False


class Welcome(Message, frozen=True):
    """Server to host, in JSON: the session is open.

    resources: ``server`` if the program's files and descriptors are the server's; ``host`` if they are the
    stub host's own and the server only answers what `interest` names.
    server: the server's name, such as ``passthrough``; software: what it runs on, with its version; session:
    its name for this session; host: its machine's host name.
    interest: what the server wants of each syscall by name; `default_interest` holds for the other calls that
    touch resources. environment: the program's, as ``NAME=VALUE``, or null for the host's own. goroutines:
    whether the server wants to know which goroutine makes each call. argv: the program's arguments, if the server
    has offered it, else null. pid: the process id that the program has at the server and is told, or 0 if it keeps
    that of its process at the host. memory: whether the server keeps remote variables (`MemoryDeclare`). ahead: the
    server may send `Ahead`, and does not mind calls that the host makes by itself, to have their answers before the
    program wants them; only if the hello says so too. streams: those of the program's standard streams that are no
    files, so that writing to them changes none. wait_seconds: for how long the session is kept when its connection is
    lost, 0 if it is not; never longer than the hello wants it. ticket: what the host proves by then that it is its
    session (`Resume`). goroutine_events: which `GoroutineEvents` the server wants, if the hello says `spread`.
    relays: whether the server knows `Relay`.
    """

    version: Annotated[int, Meta(ge=1, le=65535)]
    codec: ShortText
    server: ShortText
    software: ShortText
    session: ShortText
    host: ShortText
    resources: Literal["server", "host"]
    interest: Annotated[dict[SyscallName, Interest], Meta(max_length=1024)]
    default_interest: Interest = "ignore"
    abstraction: ShortText = "linux"
    environment: Strings | None = None
    goroutines: bool = False
    statistics_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 0
    argv: Strings | None = None
    pid: ThreadId = 0
    memory: bool = False
    ahead: bool = False
    streams: Annotated[tuple[StreamId, ...], Meta(max_length=3)] = ()
    wait_seconds: Seconds = 0
    ticket: Ticket = ""
    goroutine_events: Annotated[tuple[GoroutineEventKind, ...], Meta(max_length=6)] = ()
    relays: bool = False


class Resume(Message, frozen=True):
    """Either way, by whoever connects, first, in JSON: to go on by this connection with a session that lost its own.

    The other side answers with `Resumed`, or with `Refused`. After that the stream of frames goes on where it broke
    off, in both directions: each side first sends again, from the byte that the other is to get next. So each message
    is received once, and nothing is done twice. ticket: the session's, from `Welcome` or `Hello`, which its two ends
    alone have; token: as in a hello; received_bytes: of the frames after the welcome, how many bytes have come.
    """

    versions: Annotated[tuple[Annotated[int, Meta(ge=1, le=65535)], ...], Meta(min_length=1, max_length=64)]
    ticket: Ticket
    token: LongText = ""
    received_bytes: Count = 0


class Resumed(Message, frozen=True):
    """Either way: the answer to `Resume`, in JSON: the session goes on.

    received_bytes: as there, of the other direction.
    """

    received_bytes: Count


class Received(Message, frozen=True):
    """Either way, in a session that would be kept: so many bytes of the frames after the welcome have come.

    They need not be kept any more, to be sent again. At least 64 MiB may be under way before this must be said.
    """

    bytes: Count


class Refused(Message, frozen=True):
    """Either way, before closing on an error: from a server, instead of a welcome or later; from a host, instead of
    its hello to an offer, or later because it cannot execute what was offered.

    code: ``version``, ``codec``, ``abstraction``, ``tls``, ``token``, ``limit``, ``session`` (there is none with that
    ticket), ``spread`` (the server is none for a program on several hosts), ``malformed`` or ``internal``; from a
    host also ``purpose`` or ``launch``; message: one line for the user.
    """

    code: ShortText
    message: LongText


class Syscall(Message, frozen=True):
    """Host to server: a thread of the program makes a call that the server serves; it waits for `Result`.

    id: unique among the calls in flight, above 0; tid: the calling thread at the host; pid: its process, by the
    id that the server gave it (`Welcome`, or the result of ``clone``), else that at the host;
    name: the call's name on Linux; args: its six registers. ins: by argument index, the bytes that it reads
    (paths without their NUL; iovecs joined; string vectors joined by NUL bytes); outs: by argument index, how
    many bytes it may fill. The buffers of all ins, and those of all outs, hold at most 8 MiB together: the
    host shortens longer reads and writes, as the kernel may. goid: the goroutine that makes it, if the welcome
    asks for it and it is known, else 0.
    A call that the server does not know is answered with ENOSYS. posted: the host has answered the call itself, as it
    will go; the server makes it in its turn, and sends no result. Only if the welcome says `ahead`.
    ``clone``, ``fork`` and ``vfork`` return the id of a process that the server has made; the host makes its own
    copy when it has the result. ``execve`` and ``execveat`` return only if they fail; otherwise `Executed` comes.
    """

    id: RequestId
    tid: ThreadId
    pid: ThreadId
    name: SyscallName
    args: Registers
    ins: Buffers = {}
    outs: Capacities = {}
    goid: U64 = 0
    posted: bool = False


class Result(Message, frozen=True):
    """Server to host: the answer to `Syscall`.

    value: what the call returns (signed 64-bit), if errno is 0; outs: by argument index, the bytes to put
    into the program's memory, never more than were offered. proceed: let the thread make its call on the stub
    host, unchanged; only where resources are the host's, or for a call that concerns none (a clock, a sleep).
    """

    id: RequestId
    value: S64 = 0
    errno: Errno = 0
    outs: Buffers = {}
    proceed: bool = False


class Listed(msgspec.Struct, frozen=True):
    """What getdents64 with room for *size* bytes gives next; *position* is the folder's offset after it."""

    size: Annotated[int, Meta(ge=0, le=MAX_TRANSFER_BYTES)]
    data: Blob
    position: S64


class Named(msgspec.Struct, frozen=True):
    """What newfstatat gives for the entry *name* of a folder, without following a link."""

    name: Annotated[bytes, Meta(max_length=255)]
    stat: Stat


class Ahead(Message, frozen=True):
    """Server to host, just before the result of call *id*, an openat or newfstatat: answers to those that may follow.

    Only if the welcome says so. An openat has opened a regular file or a folder for reading, and this is how it was
    just then. flags: what F_GETFL gives; stat: what fstat fills. Of a file: *data*, its beginning, and *end*, whether
    that is all of it. Of a folder: *listing*, what getdents64 gives, in order, and *names*, attributes of entries.
    With a newfstatat come *names* alone, of entries of the folder in which it looks. The host may use these answers
    for a second, until the program makes a call that could change them or that could tell it that they have changed.

    lasting: if not 0, all of a file is told, and the server says `Revoked` with this number before anything by which
    the program could know of a change of it, or that its path leads elsewhere. Until then the host may use what is
    told whatever the program hears, for a second after each `Result` or `Direct`, for any open by the same path and
    with the same flags, and say by `Reopened` that there was one. room: how many numbers right above the descriptor's
    were free just then, as far as the server looked: those get the next descriptors.
    """

    id: RequestId
    flags: U64
    stat: Stat
    folder: bool = False
    data: Blob = b""
    end: bool = False
    lasting: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)] = 0
    room: Annotated[int, Meta(ge=0, le=64)] = 0
    listing: Annotated[tuple[Listed, ...], Meta(max_length=64)] = ()
    names: Annotated[tuple[Named, ...], Meta(max_length=4096)] = ()


class Upcoming(Message, frozen=True):
    """Server to host, at any time if the welcome has `ahead`: a folder that the program may open next.

    The server has opened *path*, relative to the working directory, with the flags *how*; *ahead* is as for an openat
    with the number *ahead.id*, by which `Taken` calls it. The host may use it as it may use `Ahead`, and only if no
    posted write to a file was on its way to the server when this was said.
    """

    path: Annotated[bytes, Meta(min_length=1, max_length=4096)]
    how: U64
    ahead: Ahead


class Taken(Message, frozen=True):
    """Host to server: what became of the folder of `Upcoming` *id*.

    The program has opened it, and has been told that it is descriptor *fd*, which must be free; or, for -1, it is not
    wanted any more. Each `Upcoming` is answered by one, which a host may send when it sends something else.
    """

    id: RequestId
    fd: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)]


class Revoked(Message, frozen=True):
    """Server to host, at any time: the `lasting` numbers of files that are not known any more.

    The host answers each by a `Reopened` with the descriptor -1, when it has said what it has opened.
    """

    files: Annotated[tuple[RequestId, ...], Meta(min_length=1, max_length=1024)]


class Reopened(Message, frozen=True):
    """Host to server: the program has opened the file whose `lasting` number is *id*, with the flags of that open.

    It has been told that it is descriptor *fd*, which must be free. For -1, the file was revoked and the host has
    opened it for the last time.
    """

    id: RequestId
    fd: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)]


class DescriptorState(Message, frozen=True):
    """Server to host, at any time if the welcome has `ahead`: how a descriptor of the program's first process is.

    kind: what it is; room: how many bytes the host may let the program write to it before they are written, with
    calls that are `posted` and that fail later, if at all: in the result of the program's next call on the
    descriptor that can tell of it. 0 after such a failure. Each write to a pipe takes whole pages of 4096 bytes of
    its room, one to a TCP socket 1024 bytes more than its size, one to a Unix socket 1024 more than twice its size.
    What has no room after all, because others have filled it meanwhile, is written once there is some.

    data: of a TCP socket, what the next read will bring, or its beginning; it stays there until a call takes it.
    taken: how many bytes posted calls have taken out of the queue before. watched: if there is nothing after *data*,
    not even the end, the epoll instance that tells of each change of that, else -1.

    With each result of a call that waits for events comes the state of each TCP socket that they are about. That of
    the epoll instance itself says that there are events of which this is not known.
    """

    fd: Descriptor
    kind: DescriptorKind
    room: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    data: Annotated[bytes, Meta(max_length=64 << 10)] = b""
    taken: Count = 0
    watched: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] = -1


class DirectBytes(msgspec.Struct, frozen=True):
    """What has happened to the socket *fd* of a `Direct`.

    To the server: the program has taken *count* bytes of what came before, and has written *data*. To the host:
    *count* bytes of what the program wrote have been given to the socket's buffer, and the next bytes to read are
    *data*; they stay in the socket's queue until they are taken. At most 256 KiB are on their way in each direction.
    """

    fd: Descriptor
    count: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    data: Annotated[bytes, Meta(max_length=DIRECT_WINDOW_BYTES)] = b""


class DirectBegin(Message, frozen=True):
    """Host to server: the program reads and writes the connected TCP socket *fd* at the host from now on.

    It is watched by the epoll instance *epfd*, edge-triggered, with *events* and *data*; until `DirectEnd` that tells
    nothing of it. A server that does not want this answers `DirectEnd` at once. Only if the welcome has `ahead`.
    """

    fd: Descriptor
    epfd: Descriptor
    events: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
    data: U64


class Direct(Message, frozen=True):
    """Either way: what has happened to sockets that the program reads and writes at the host."""

    sockets: Annotated[tuple[DirectBytes, ...], Meta(max_length=1 << 16)]


class DirectEnd(Message, frozen=True):
    """Either way: the program's calls on the socket *fd* are made by the server again.

    The server sends it when the socket has failed, or its peer has ended, and tells nothing of it any more; the host
    answers with its own, after a last `Direct`. What the server has not given to the socket by then counts as a
    posted write with the host's *id*. The socket is watched again as it was.
    """

    fd: Descriptor
    id: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)] = 0


class Observed(Message, frozen=True):
    """Host to server: a thread makes a call that the server only observes; nobody waits.

    The fields are those of `Syscall`.
    """

    tid: ThreadId
    pid: ThreadId
    name: SyscallName
    args: Registers
    ins: Buffers = {}
    goid: U64 = 0


class Cancel(Message, frozen=True):
    """Host to server: the thread no longer waits for call *id*.

    The server interrupts the call and answers all the same, with what it did or with EINTR. A cancel of a call
    that was answered meanwhile is ignored.
    """

    id: RequestId


class MemoryDeclare(Message, frozen=True):
    """Host to server, if the welcome has `memory`: the program has a remote variable; it waits for `MemoryResult`.

    name: what it is called by all sessions of the server that share it; initial: its value in this program. The
    first session's is the variable's; later ones take over what it has by then, which the result brings. Errors:
    EEXIST if it has another size, EINVAL for a name or size that the server does not take, ENOSPC.
    id, here and below: unique among the memory messages in flight.
    """

    id: RequestId
    name: VariableName
    initial: VariableBytes


class MemoryGet(Message, frozen=True):
    """Host to server: a thread reads *size* bytes of a remote variable; it waits for `MemoryResult`.

    What is aligned and of up to 8 bytes is of one moment. tid: the thread; goid: its goroutine, if the welcome asks
    for it and it is known, else 0. Errors: ENOENT for a variable that no session has declared, ERANGE for bytes that
    it does not have.
    """

    id: RequestId
    name: VariableName
    offset: VariableSize
    size: VariableSize
    tid: ThreadId = 0
    goid: U64 = 0


class MemorySet(Message, frozen=True):
    """Host to server: a thread writes *data* into a remote variable; it waits for `MemoryResult`. See `MemoryGet`."""

    id: RequestId
    name: VariableName
    offset: VariableSize
    data: VariableBytes
    tid: ThreadId = 0
    goid: U64 = 0


class MemoryAtomic(Message, frozen=True):
    """Host to server: an atomic operation on a remote variable; the result's data is what was there before.

    operand: 1, 2, 4, 8 or 16 bytes, little-endian; so many are operated on. operation: ``add`` wraps around;
    ``compare_exchange`` writes *operand* only if *expected*, as many bytes, was there. Errors: see `MemoryGet`, and
    EINVAL for other sizes. The operation is made exactly once, or not at all if the session ends before.
    """

    id: RequestId
    name: VariableName
    offset: VariableSize
    operation: AtomicOperation
    operand: AtomicOperand
    expected: AtomicOperand = b""
    tid: ThreadId = 0
    goid: U64 = 0


class MemoryResult(Message, frozen=True):
    """Server to host: the answer to a memory message: *data*, or an *error* by its name (``ERANGE``)."""

    id: RequestId
    data: VariableBytes = b""
    error: ShortText = ""


class StreamData(Message, frozen=True):
    """Either way: bytes of a stream: a standard stream (0 from the host, 1 and 2 from the server), or a relay's.

    Never more than the credit that the receiver has given; it starts at none.
    """

    stream: StreamNumber
    data: Blob


class StreamCredit(Message, frozen=True):
    """Either way: the sender of this can take *size* more bytes of the stream."""

    stream: StreamNumber
    size: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]


class StreamEnd(Message, frozen=True):
    """Either way: no more data on the stream.

    From the side that sends the data: it has all been sent; what reads it will read end of file.
    From the side that takes the data: nobody reads it any more, as with a closed pipe; what is under way is
    thrown away. taken: of the input of a relay, how many bytes were read in all. For each stream of a relay the
    server sends one of these, its last message about it, whether or not the host has sent one.
    """

    stream: StreamNumber
    taken: Count = 0


class Relay(Message, frozen=True):
    """Host to server, just before call *id*, an execve or execveat of process *pid*: what is executed is to have
    descriptors that are the host's. Only if the welcome has `relays`; at most 256 streams at a time have not ended.

    fds: the numbers, which are to stand for the end of a pipe, or of a socket pair if there are both streams, and
    stand for what they did before if the exec fails. input: the number of the stream that comes from the host,
    output: of the one that goes there, 0 if there is none; each above 2, and above all that were named before.
    window: of the input, how many bytes the server takes that are not read yet. When the program is executed, the
    server gives so much credit for the input, and more only for what was read; it tells at once when all was, or, if
    the host *reads_on* before that, when a quarter of the window was. Before each message that is none of a stream,
    it sends what was written until then, as far as there is credit, and tells what was read. If what has both streams
    is closed, the input ends first; so an output that ends before its input was shut down.
    """

    id: RequestId
    pid: ThreadId
    fds: Annotated[tuple[Descriptor, ...], Meta(min_length=1, max_length=MAX_RELAY_NUMBERS)]
    input: StreamNumber = 0
    output: StreamNumber = 0
    window: Annotated[int, Meta(ge=1, le=MAX_RELAY_WINDOW_BYTES)] = MAX_RELAY_WINDOW_BYTES
    reads_on: bool = False


class WindowSize(Message, frozen=True):
    """Host to server: the user's terminal changed its size."""

    rows: Cells
    columns: Cells


class Signal(Message, frozen=True):
    """Either way: deliver signal *signo* (Linux number) to process *pid* of the program, 0 for its first one.

    From the host only for a process that has executed another program (`Executed`).
    code, sender, uid, value: what siginfo_t says of it: ``si_code``, ``si_pid``, ``si_uid``, and ``si_status`` or
    ``si_value``.
    """

    signo: Annotated[int, Meta(ge=1, le=64)]
    pid: ThreadId = 0
    code: S64 = 0
    sender: ThreadId = 0
    uid: U64 = 0
    value: S64 = 0


class SignalState(Message, frozen=True):
    """Host to server: which signals process *pid* ignores and which its calling thread blocks, from now on.

    ignored, blocked: bit *n* stands for signal *n* + 1. Sent before a call that depends on it: an exec hands both on.
    """

    pid: ThreadId
    ignored: U64
    blocked: U64


class Executed(Message, frozen=True):
    """Server to host: process *pid* has become another program, at the server; the host ends its own copy."""

    pid: ThreadId


class ProcessExited(Message, frozen=True):
    """Host to server: process *pid*, made by ``clone``, is gone. status, signo: as in `Exited`."""

    pid: ThreadId
    status: Annotated[int, Meta(ge=0, le=255)] | None
    signo: SignalNumber = 0


class ProcessStopped(Message, frozen=True):
    """Host to server: signal *signo* has stopped process *pid*; a `Signal` lets it go on."""

    pid: ThreadId
    signo: Annotated[int, Meta(ge=1, le=64)]


class ProgramExited(Message, frozen=True):
    """Server to host: the program that the first process executed (`Executed`) has ended. The host then exits.

    status, signo: as in `Exited`.
    """

    status: Annotated[int, Meta(ge=0, le=255)] | None
    signo: SignalNumber = 0


class ThreadEvent(Message, frozen=True):
    """Host to server: a thread was ``created`` or has ``exited``."""

    tid: ThreadId
    event: Literal["created", "exited"]


class Exited(Message, frozen=True):
    """Host to server: the program is gone. status: its exit status, or null if *signo* killed it."""

    status: Annotated[int, Meta(ge=0, le=255)] | None
    signo: SignalNumber = 0


class Fetch(Message, frozen=True):
    """Host to server: send that part of the file that was offered.

    Any number may be under way; they are answered in their order.
    """

    sha256: Sha256
    offset: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
    size: Annotated[int, Meta(ge=1, le=MAX_TRANSFER_BYTES)]


class Obtained(Message, frozen=True):
    """Host to server: it has the whole file. Sent for an offer's purpose ``spread`` only, and the last message of
    this protocol there: what follows is between hosts of one version of ptserver.
    """


class Chunk(Message, frozen=True):
    """Server to host: the answer to `Fetch`. Less data than was asked for is the end of the file."""

    sha256: Sha256
    offset: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
    data: Blob


class Stopped(Message, frozen=True):
    """Host to server: signal *signo* has stopped the program.

    The host may be stopped with it, and say nothing until it goes on. A server that has offered the program stops
    its own process, for its user's shell to see a stopped job; the program goes on by a `Signal` of SIGCONT's number.
    """

    signo: Annotated[int, Meta(ge=1, le=64)]


class GoroutineStatistics(Message, frozen=True):
    """Host to server: what the program's goroutines have used, if the welcome asks for it.

    monotonic_ns: when, by the host's clock. goroutines: those that used most since the last time, omitted: how many
    others there are accounts of. Nobody waits: a message for which there is no room is left out.
    """

    monotonic_ns: Nanoseconds
    goroutines: Annotated[tuple[GoroutineUse, ...], Meta(max_length=MAX_STATISTICS)] = ()
    omitted: Count = 0


class GoroutineEvents(Message, frozen=True):
    """Host to server: what has become of goroutines of a spread program, in the order of time, on whichever host.

    Only what the welcome asks for. Nobody waits for the server: it hears of events some milliseconds later, and lost
    says how many before these there was no room for.
    """

    events: Annotated[tuple[GoroutineEvent, ...], Meta(max_length=MAX_GOROUTINE_EVENTS)] = ()
    lost: Count = 0


class PlaceGoroutine(Message, frozen=True):
    """Server to host, at any time if the welcome asks for events: goroutine *goid* is to run at *host*.

    It goes there when it next runs for some milliseconds, and again whenever it is seen to start elsewhere, until it
    is placed anew. What cannot be done (there is no such host any more, or the goroutine has ended) is left.
    """

    goid: U64
    host: HostNumber


class WatcherHello(Message, frozen=True):
    """Watcher to server, first, in JSON, in place of a host's `Hello`: who wants to watch sessions, and run none.

    versions, codecs, software: as in `Hello`. token: the server's, or the one that it has for watchers.
    """

    versions: Annotated[tuple[Annotated[int, Meta(ge=1, le=65535)], ...], Meta(min_length=1, max_length=64)]
    codecs: Annotated[tuple[ShortText, ...], Meta(min_length=1, max_length=16)]
    software: ShortText
    token: LongText = ""


class WatcherWelcome(Message, frozen=True):
    """Server to watcher, in JSON: the sessions that there are now, the oldest first; omitted: how many more."""

    version: Annotated[int, Meta(ge=1, le=65535)]
    codec: ShortText
    server: ShortText
    software: ShortText
    host: ShortText
    sessions: Annotated[tuple[SessionFacts, ...], Meta(max_length=MAX_LISTED_SESSIONS)] = ()
    omitted: Count = 0


class Watch(Message, frozen=True):
    """Server to host, and watcher to server: tell me of a session; the host answers until `Unwatch` or `WatchEnded`.

    id: unique among the sender's watches that have not ended. session: whose, for the server. what:

    - ``trace``: the calls that the host takes, `names` of them (none: all that reach outside), in `WatchedCalls`;
      stacks: with where they were made; events: kinds of what becomes of goroutines (as of `ptserver trace`'s
      --events), in `WatchedRows` as docs/trace.schema.json describes its types goroutine, gc and loss; runtime: the
      calls that Go's runtime makes by itself; with either of the two, no names are no calls;
    - ``goroutines``: the program's goroutines, once, in `WatchedRows` as docs/goroutines.schema.json describes them.
      stacks, labels, system, states, function: as the options of `ptserver goroutines`;
    - ``stack``: the same of goroutine `goid`;
    - ``attach``: what happens, every `interval_ms`, in `WatchedRows` as docs/attach.schema.json describes it; exact:
      with the time that goroutines are blocked measured, rather than estimated.
    """

    id: RequestId
    what: Literal["trace", "goroutines", "stack", "attach"]
    session: ShortText = ""
    names: Annotated[tuple[SyscallName, ...], Meta(max_length=1024)] = ()
    goid: U64 = 0
    interval_ms: Annotated[int, Meta(ge=100, le=3_600_000)] = 1000
    stacks: bool = False
    labels: bool = False
    system: bool = False
    states: Annotated[tuple[ShortText, ...], Meta(max_length=64)] = ()
    function: ShortText = ""
    events: Annotated[
        tuple[Literal["create", "start", "block", "unblock", "exit", "gc"], ...], Meta(max_length=6)
    ] = ()
    exact: bool = False
    runtime: bool = False


class Unwatch(Message, frozen=True):
    """Server to host, and watcher to server: enough of watch *id*; what is under way may still come."""

    id: RequestId


class WatchedCalls(Message, frozen=True):
    """Host to server, and server to watcher: calls that have ended, in that order.

    monotonic_ns and realtime_ns: the same moment on the host's two clocks. lost: how many came before these that
    there was no room for: nobody waits for a watcher. stacks: those that the calls refer to, innermost frame first.
    """

    id: RequestId
    monotonic_ns: Nanoseconds
    realtime_ns: Nanoseconds
    calls: Annotated[tuple[WatchedCall, ...], Meta(max_length=MAX_WATCHED_CALLS)] = ()
    lost: Count = 0
    stacks: Annotated[tuple[WatchedStack, ...], Meta(max_length=MAX_WATCHED_CALLS)] = ()


class WatchedRows(Message, frozen=True):
    """Host to server, and server to watcher: JSON, one object each. lost: how many before these are missing."""

    id: RequestId
    rows: Annotated[tuple[Annotated[bytes, Meta(max_length=1 << 22)], ...], Meta(max_length=4096)] = ()
    lost: Count = 0


class WatchEnded(Message, frozen=True):
    """Host to server, and server to watcher: nothing more comes of watch *id*.

    problem: why it failed, in a line, or empty if it is complete, was told to end, or the program is gone.
    gone: whether it is; then status and signo are as in `Exited`.
    """

    id: RequestId
    problem: LongText = ""
    gone: bool = False
    status: Annotated[int, Meta(ge=0, le=255)] | None = None
    signo: SignalNumber = 0


class Goodbye(Message, frozen=True):
    """Server to host: answer to `Exited`, after the last stream data; both close."""


class Ping(Message, frozen=True):
    """Either way: are you there? *id* comes back in a `Pong`."""

    id: RequestId


class Pong(Message, frozen=True):
    """Either way: the answer to a `Ping`."""

    id: RequestId


ToServer = (
    Hello
    | Syscall
    | Observed
    | Taken
    | Reopened
    | Cancel
    | DirectBegin
    | Direct
    | DirectEnd
    | MemoryDeclare
    | MemoryGet
    | MemorySet
    | MemoryAtomic
    | StreamData
    | StreamCredit
    | StreamEnd
    | Relay
    | WindowSize
    | ThreadEvent
    | Fetch
    | Obtained
    | Stopped
    | GoroutineStatistics
    | GoroutineEvents
    | WatchedCalls
    | WatchedRows
    | WatchEnded
    | Exited
    | ProcessExited
    | ProcessStopped
    | Signal
    | SignalState
    | Received
    | Resume
    | Resumed
    | Refused
    | Ping
    | Pong
)
ToHost = (
    Offer
    | Welcome
    | Refused
    | Ahead
    | Upcoming
    | Revoked
    | DescriptorState
    | Direct
    | DirectEnd
    | Result
    | MemoryResult
    | StreamData
    | StreamCredit
    | StreamEnd
    | Signal
    | Executed
    | ProgramExited
    | Chunk
    | PlaceGoroutine
    | Watch
    | Unwatch
    | Goodbye
    | Received
    | Resume
    | Resumed
    | Ping
    | Pong
)
#: What a session's process sends to the shadow of a child process, and what that sends back.
ToShadow = Syscall | Cancel | Signal | SignalState | ProcessExited | ProcessStopped | Relay
FromShadow = Result | Signal | Executed
ToWatcher = WatcherWelcome | WatchedCalls | WatchedRows | WatchEnded | Refused | Ping | Pong
FromWatcher = WatcherHello | Watch | Unwatch | Ping | Pong
