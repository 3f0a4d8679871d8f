"""The hypercalls: how a program with the stub talks to its stub host. Numbers and layouts are said here alone.

A hypercall is a syscall whose number no kernel knows, the same on every architecture. A seccomp filter that notifies
on them brings them to the stub host; a bare kernel answers ENOSYS, and so the stub learns that nobody is there. The
Go side repeats the numbers (`runtime_stub.go`, `remote.go`); a test compares the two.

    HELLO(request, request_bytes, message, message_bytes)
        The stub's first call, before any init function of the program. Returns 0: the server takes the program.
        Returns an errno: it does not, and the program panics with the message. ENOSYS must not be such an errno.
    WATCH(message, message_bytes)
        Made once, after HELLO returned 0, on a thread that does nothing else. Does not return while there is a
        connection to the server. Once that is lost it returns 0 with the reason as its message, and the program
        ends as by a panic: it writes traces to descriptor 2 and exits with status 2, for which the stub host must
        let `write` and all that is local pass. No call that was waiting for the server should be answered, or the
        program may come to its own end first. WATCH must be interruptible by signals (the stub calls it again).
    INFO(text, text_bytes)
        Returns the whole length of the server's description and writes what fits of it. `text_bytes` may be 0.

    HOSTS()
        Returns how many hosts the program is spread over; ENOSYS where it is not.
    HERE()
        Returns the number of the host that executes the calling thread, from 0.
    MIGRATE(host)
        Returns 0 at that host, or EINVAL if there is none with this number.

    MEMORY(request, request_bytes, answer, answer_bytes)
        For emulators alone, whose program has no way to it (`ptserver.emulated.away`). The request is a memory
        message in MessagePack. Returns the size of the answer, a `MemoryResult`; EIO if the server is lost.
    INTERRUPT(tid)
        For emulators alone: the call that their thread *tid* waits in shall return soon, with what it has come to
        or with EINTR. Returns 1, or 0 if only a signal can do that. A thread that makes no call is left alone.
    Once the server is lost, calls that the first thread of an emulator makes for its program fail with SERVER_LOST,
    so that it goes on with what WATCH wakes; the program never sees that.

    request  = marker
    marker   = FE*32 "ptserver-stub/" abi " GOOSREMOTE=" name 00
    abi      = decimal number
    name     = [a-z] [a-z0-9_]{0,31}
    message  = UTF-8 text without control characters, 00; the rest of the buffer is left alone
    text     = { key "=" value LF }, UTF-8; keys: name, version, session, host, goosremote; others are ignored

The bytes of a program are not trusted: every decoder here checks what it is given. Everything here is pure.
"""

import enum
import re
from collections.abc import Mapping

from ptserver.errors import PtServerError

STUB_ABI = 1
"""The version of the hypercalls that this package speaks: HELLO's request names the stub's."""

FIRST_HYPERCALL = 0xFFF0
LAST_HYPERCALL = 0xFFFF


class Hypercall(enum.IntEnum):
    """The hypercalls' syscall numbers. Those up to LAST_HYPERCALL are kept for later ones."""

    HELLO = 0xFFF0
    WATCH = 0xFFF1
    INFO = 0xFFF2
    HOSTS = 0xFFF3
    HERE = 0xFFF4
    MIGRATE = 0xFFF5
    MEMORY = 0xFFF6
    INTERRUPT = 0xFFF7


REQUEST_MAX_BYTES = 256
"""No HELLO request is longer: a longer one is not the stub's."""

MESSAGE_BYTES = 1024
"""The size of the buffer for a message that the stub offers with HELLO and WATCH."""

MEMORY_BYTES = (1 << 20) + 4096
"""No request and no answer of MEMORY is longer."""

SERVER_LOST = 4000
"""An errno that no kernel knows: why calls that an emulator makes for its program fail once the server is lost."""

INFO_KEYS = ("name", "version", "session", "host", "goosremote")
"""The keys of INFO's text, each a field of Go's `remote.ServerInfo`."""

INFO_MAX_BYTES = 1 << 16
"""No INFO text is longer: the stub would not read it."""

DEFAULT_GOOSREMOTE = "linux"

MARKER_RUN = b"\xfe" * 32
"""What a marker starts with: a run of one byte that is rare in programs, which is fast to search for."""

_MARKER_MAGIC = MARKER_RUN + b"ptserver-stub/"
_GOOSREMOTE = re.compile(r"[a-z][a-z0-9_]{0,31}")
_MARKER = re.compile(re.escape(_MARKER_MAGIC) + rb"([0-9]{1,4}) GOOSREMOTE=([a-z][a-z0-9_]{0,31})\x00")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class MarkerError(PtServerError):
    """Bytes that should be a stub's marker are none."""

    exit_status = 65


def check_goosremote(name: str) -> str:
    """Return `name` if it can be the name of an OS abstraction.

    Raises: ValueError, whose text says what a name looks like.
    """
    if not _GOOSREMOTE.fullmatch(name):
        raise ValueError(
            f"GOOSREMOTE={name!r} is no name of an OS abstraction: up to 32 lower-case letters, digits and _"
        )
    return name


def encode_marker(goosremote: str, abi: int = STUB_ABI) -> bytes:
    """Return the marker of a stub. Raises: ValueError for a `goosremote` that is no name."""
    return _MARKER_MAGIC + f"{abi} GOOSREMOTE={check_goosremote(goosremote)}".encode() + b"\0"


def decode_marker(data: bytes) -> tuple[int, str]:
    """Return (stub ABI version, GOOSREMOTE) of the marker that `data` starts with.

    HELLO's request is such `data`. The ABI may be another than STUB_ABI. Raises: MarkerError.
    """
    found = _MARKER.match(data)
    if found is None:
        raise MarkerError(f"not the marker of a ptserver stub: {data[:64]!r}")
    return int(found[1]), found[2].decode()


def encode_message(text: str, size_bytes: int = MESSAGE_BYTES) -> bytes:
    """Return what HELLO or WATCH writes for `text`: at most `size_bytes` bytes, of which the last is 0.

    Control characters become spaces, and a text that is too long is cut between characters. `size_bytes` is the
    size of the program's buffer; the result is empty when it is 0 or less.
    """
    if size_bytes <= 0:
        return b""
    return _cut(_CONTROL.sub(" ", text), size_bytes - 1) + b"\0"


def encode_info(values: Mapping[str, str]) -> bytes:
    """Return INFO's text for `values`, whose keys are INFO_KEYS or later ones; at most INFO_MAX_BYTES.

    Raises: ValueError for a key that is empty or has "=" or control characters in it, or for too long a text.
    """
    lines = []
    for key, value in values.items():
        if not key or "=" in key or _CONTROL.search(key):
            raise ValueError(f"{key!r} cannot be a key of INFO's text")
        lines.append(f"{key}={_CONTROL.sub(' ', value)}\n")
    text = "".join(lines).encode(errors="replace")
    if len(text) > INFO_MAX_BYTES:
        raise ValueError(f"INFO's text has {len(text)} bytes; {INFO_MAX_BYTES} are allowed")
    return text


def _cut(text: str, size_bytes: int) -> bytes:
    return text.encode(errors="replace")[:size_bytes].decode(errors="ignore").encode()
