"""Writes and reads a trace as JSON lines: one object a line, the first a `start`; `docs/trace.md` has the prose.

The classes below are the schema (`schema()` prints it). It is versioned: what this version reads it reads for ever;
fields may be added, so readers must ignore those that they do not know. A line that is cut short ends the
trace without an error, as a trace of a machine that went down must still be readable.

Not trusted: a file that is read.
"""

import json
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from typing import Any

import msgspec

from ptserver.tracelog.batch import LINES_AT_ONCE, CallBatch, OfStack, Table
from ptserver.tracelog.errors import TraceFormatError
from ptserver.tracelog.events import (
    Event,
    ExitEvent,
    Frame,
    GcEvent,
    GoEvent,
    LossEvent,
    SignalEvent,
    StopEvent,
    SyscallEvent,
    ThreadEvent,
    TraceStart,
    row_of,
)
from ptserver.tracelog.jsonl_batch import JsonBatches
from ptserver.tracelog.output import LineWriter
from stepping.syscalls.decode import DEFAULT_LIMIT, decode_call
from stepping.syscalls.decode_buffers import find_buffer
from stepping.syscalls.decode_scalars import signal_name
from stepping.syscalls.decode_values import to_plain

#: What `StartLine.version` is in files that this version writes.
TRACE_VERSION = 1


class _Line(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True, gc=False):
    """Base of all lines; `type` says which it is."""


class StartLine(_Line, frozen=True, tag="start"):
    """The first line.

    monotonic_ns and realtime_ns are the same moment on both clocks; all other times are of the monotonic one.
    program: its arguments; arch: `amd64` or `arm64`; pid: its process, or 0.
    """

    version: int
    monotonic_ns: int
    realtime_ns: int
    arch: str = "amd64"
    program: tuple[str, ...] = ()
    pid: int = 0


class FrameLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call on a goroutine's stack, innermost first; pc in base 16."""

    function: str
    file: str = ""
    line: int = 0
    pc: str = ""


class SyscallLine(_Line, frozen=True, tag="syscall"):
    """A call, written when it ended.

    start_ns, duration_ns: when and how long; null if unknown. args: by name, the arguments that this call has: a
    number; a string for a name of the kernel's, a path or an address (base 16); an array of names for flags; an
    object for a struct; for a buffer a string, or an object with `text` or `base64` and, if it was cut, `size`
    in bytes; an object with `before` and `after` for what the call changed, with `part` and
    `size` for what is in the beginning of a buffer; null for a null pointer.
    value: what it returned, null if it did not; errno: the error's name, only if it failed. unfinished: the program
    ended meanwhile. goid and stack: the goroutine that made the call and where, if known.
    """

    start_ns: int
    duration_ns: int | None
    pid: int
    tid: int
    name: str
    args: dict[str, Any]
    value: int | None
    errno: str = ""
    unfinished: bool = False
    goid: int | None = None
    stack: tuple[FrameLine, ...] = ()


class SignalLine(_Line, frozen=True, tag="signal"):
    """A signal was delivered to a thread. info: its siginfo_t, if known."""

    start_ns: int
    pid: int
    tid: int
    signal: str
    info: dict[str, Any] = {}


class StopLine(_Line, frozen=True, tag="stop"):
    """A thread was stopped by job control, by a signal, and waits for a SIGCONT."""

    start_ns: int
    pid: int
    tid: int
    signal: str


class ThreadLine(_Line, frozen=True, tag="thread"):
    """A thread was `created` or has `exited`."""

    start_ns: int
    pid: int
    tid: int
    event: str


class ExitLine(_Line, frozen=True, tag="exit"):
    """A process is gone, with an exit status or killed by a signal (`core`: it left a core file)."""

    start_ns: int
    pid: int
    tid: int
    status: int | None = None
    signal: str = ""
    core: bool = False


class GoroutineLine(_Line, frozen=True, tag="goroutine"):
    """Something became of a goroutine.

    event: `create`, `start`, `block`, `unblock` or `exit`. goid: which one, null if a new one never ran. by: the
    goroutine that did it, if another did. reason: why it blocks, in Go's words; channel: which one it blocks on, in
    base 16; channels: of a select with several, all, but no more than 32. function: what a new one executes. stack:
    where it blocks, or where `by` creates or unblocks it.
    """

    start_ns: int
    pid: int
    tid: int
    event: str
    goid: int | None = None
    by: int | None = None
    reason: str = ""
    channel: str = ""
    function: str = ""
    stack: tuple[FrameLine, ...] = ()
    channels: tuple[str, ...] = ()


class GcLine(_Line, frozen=True, tag="gc"):
    """Go's collector enters a phase: `start`, `mark termination`, `sweep`, `stop the world`, `start the world`."""

    start_ns: int
    pid: int
    tid: int
    phase: str
    by: int | None = None


class LossLine(_Line, frozen=True, tag="loss"):
    """So many events that came before this are missing."""

    start_ns: int
    lost: int


Line = (
    StartLine
    | SyscallLine
    | SignalLine
    | StopLine
    | ThreadLine
    | ExitLine
    | GoroutineLine
    | GcLine
    | LossLine
)

_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


class JsonLinesSink:
    """A `TraceSink` that writes JSON lines. limit: how many bytes of a buffer are written."""

    def __init__(self, writer: LineWriter, start: TraceStart, *, limit: int = DEFAULT_LIMIT) -> None:
        self._writer = writer
        self._arch = start.arch
        self._limit = limit
        self._encode = msgspec.json.Encoder().encode
        self._batches = JsonBatches(start.arch, limit, self._encode_stack)
        self._texts: Table[str, str] = Table(lambda text: self._encode(text).decode())
        self._stacks = OfStack(lambda stack: f',"stack":{self._encode_stack(stack).decode()}')
        self._write(
            StartLine(
                version=TRACE_VERSION,
                monotonic_ns=start.monotonic_ns,
                realtime_ns=start.realtime_ns,
                arch=start.arch,
                program=tuple(_clean(word) for word in start.program),
                pid=start.pid,
            )
        )

    def event(self, event: Event) -> None:
        """Write an event."""
        self._write(self._syscall(event) if type(event) is SyscallEvent else self._other(event))

    def calls(self, batch: CallBatch) -> None:
        """Write many calls."""
        write, lines = self._writer.write, self._batches.lines(batch)
        if batch.others:
            lines = list(batch.between(lines, self._other_text))
        for start in range(0, len(lines), LINES_AT_ONCE):
            write("".join(lines[start : start + LINES_AT_ONCE]).encode())

    def _other_text(self, event: Event) -> str:
        """Return the line of an event that is no call, with its newline."""
        if type(event) is not GoEvent:
            return self._encode(self._other(event)).decode() + "\n"
        # As msgspec encodes a `GoroutineLine`, of parts that are encoded already.
        start_ns, pid, tid, what, goid, by, reason, channel, function, stack, channels = event
        parts = [f'{{"type":"goroutine","start_ns":{start_ns},"pid":{pid},"tid":{tid},"event":"{what}"']
        if goid is not None:
            parts.append(f',"goid":{goid}')
        if by is not None:
            parts.append(f',"by":{by}')
        if reason:
            parts.append(f',"reason":{self._texts[reason]}')
        if channel:
            parts.append(f',"channel":"{channel:#x}"')
        if function:
            parts.append(f',"function":{self._texts[_clean(function)]}')
        if stack:
            parts.append(self._stacks(stack))
        if channels:
            shown = ",".join([f'"{each:#x}"' for each in channels])
            parts.append(f',"channels":[{shown}]')
        parts.append("}\n")
        return "".join(parts)

    def flush(self) -> None:
        """Write what was kept back."""
        self._writer.flush()

    def close(self) -> None:
        """Write all that is left."""
        self._writer.close()

    def _encode_stack(self, stack: tuple[Frame, ...]) -> bytes:
        return self._encode(tuple(map(_frame, stack)))

    def _write(self, line: Line) -> None:
        self._writer.write(self._encode(line) + b"\n")

    def _syscall(self, event: SyscallEvent) -> SyscallLine:
        start_ns, duration_ns, pid, tid, name, args, ins, outs, value, errno, unfinished, goid, stack = event
        decoded = decode_call(row_of(name), args, ins, outs, value, errno, limit=self._limit, arch=self._arch)
        return SyscallLine(
            start_ns, duration_ns, pid, tid, name, decoded["args"], decoded["value"],
            decoded.get("errno", ""), unfinished, goid, tuple(map(_frame, stack)) if stack else (),
        )  # fmt: skip

    def _other(self, event: Event) -> Line:
        match event:
            case SignalEvent():
                decode = find_buffer("siginfo", self._arch) if event.info else None
                info = to_plain(decode(event.info, self._arch), self._limit) if decode else None
                name = signal_name(event.signo)
                fields = info if isinstance(info, dict) else {}
                return SignalLine(event.start_ns, event.pid, event.tid, name, fields)
            case StopEvent():
                return StopLine(event.start_ns, event.pid, event.tid, signal_name(event.signo))
            case ThreadEvent():
                return ThreadLine(event.start_ns, event.pid, event.tid, event.event)
            case ExitEvent():
                signal = signal_name(event.signo) if event.status is None else ""
                return ExitLine(event.start_ns, event.pid, event.tid, event.status, signal, event.core)
            case GoEvent() | GcEvent() | LossEvent():
                return line_of(event)
            case SyscallEvent():
                return self._syscall(event)


def line_of(event: GoEvent | GcEvent | LossEvent) -> GoroutineLine | GcLine | LossLine:
    """Return the line of an event that concerns no call and no thread."""
    match event:
        case GoEvent(start_ns, pid, tid, what, goid, by, reason, channel, function, stack, channels):
            shown = hex(channel) if channel else ""
            frames = tuple(map(_frame, stack))
            return GoroutineLine(
                *(start_ns, pid, tid, what, goid, by, reason, shown, _clean(function), frames),
                tuple(map(hex, channels)),
            )
        case GcEvent(start_ns, pid, tid, phase, by):
            return GcLine(start_ns, pid, tid, phase, by)
        case LossEvent():
            return LossLine(event.start_ns, event.lost)


def decode_event(text: bytes) -> GoEvent | GcEvent | LossEvent:
    """Return the event that a line is of: the inverse of `line_of`, encoded.

    Raises:
        TraceFormatError: it is no such line.
    """
    try:
        line = _decoder.decode(text)
        match line:
            case GoroutineLine(
                start_ns, pid, tid, what, goid, by, reason, channel, function, stack, channels
            ):
                frames = tuple(
                    Frame(one.function, one.file, one.line, int(one.pc or "0", 16)) for one in stack
                )
                several = tuple(int(one, 16) for one in channels)
                shown = int(channel or "0", 16)
                return GoEvent(start_ns, pid, tid, what, goid, by, reason, shown, function, frames, several)
            case GcLine(start_ns, pid, tid, phase, by):
                return GcEvent(start_ns, pid, tid, phase, by)
            case LossLine(start_ns, lost):
                return LossEvent(start_ns, lost)
    except (msgspec.DecodeError, ValueError) as error:
        raise TraceFormatError(f"this is no line of an event: {error}") from error
    raise TraceFormatError(f"a line of an event is of type {type(line).__name__}")


def _frame(frame: Frame) -> FrameLine:
    return FrameLine(_clean(frame.function), _clean(frame.file), frame.line, hex(frame.pc))


def _clean(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # undecodable file names hold surrogates


def read_lines(lines: Iterable[bytes]) -> Iterator[Line]:
    """Return the lines of a trace, one at a time; the first is a `StartLine`.

    A last line without a newline is left out: whoever wrote it was stopped in the middle.

    Raises:
        TraceFormatError: this is no trace, or one of another version, or a line inside it is malformed.
    """
    for number, text in enumerate(lines, 1):
        if not text.endswith(b"\n"):
            break
        try:
            line = _decoder.decode(text)
        except msgspec.DecodeError as error:
            raise TraceFormatError(f"line {number} is no line of a trace: {error}") from error
        if number == 1:
            if not isinstance(line, StartLine):
                raise TraceFormatError("this is no trace: it does not begin with a start line")
            if line.version != TRACE_VERSION:
                raise TraceFormatError(
                    f"this trace is of version {line.version}; this program reads version {TRACE_VERSION}"
                )
        yield line


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a line."""
    described = msgspec.json.schema(Line)
    for definition in described["$defs"].values():
        definition["description"] = cleandoc(definition["description"])
    return described


def schema_text() -> str:
    """Return the JSON Schema as it is published in `docs/trace.schema.json`."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
