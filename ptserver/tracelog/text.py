"""Writes a trace as text, in strace's manner:

    [7512] openat(AT_FDCWD, "/etc/hosts", O_RDONLY|O_CLOEXEC) = 3 <0.000018>
    [7512 g34] read(3, "127.0.0.1 loc"..., 4096) = 221
    --- SIGURG {si_signo=SIGURG, si_code=SI_TKILL, si_pid=7512, si_uid=0} ---
    +++ exited with 0 +++

Each line is `[time] [thread] what`; the thread is named once there are several, the goroutine if it is known. The
text is made for people and may change; programs read JSON lines.
"""

import time
from typing import Literal, NamedTuple

from ptserver.tracelog.batch import LINES_AT_ONCE, CallBatch, OfStack
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
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.text_batch import TextBatches
from stepping.syscalls.decode import DEFAULT_LIMIT, format_arguments, format_result
from stepping.syscalls.decode_buffers import find_buffer
from stepping.syscalls.decode_scalars import signal_name
from stepping.syscalls.decode_values import to_text

#: How times are shown: not, since the event before, since the start, by the clock, as seconds since 1970.
TimeStyle = Literal["none", "relative", "elapsed", "clock", "epoch"]

#: Functions that wait for others, who are of more interest.
_WAITING = ("runtime.", "sync.", "internal/sync.", "internal/poll.", "time.Sleep")

_NS = 1_000_000_000


class TextOptions(NamedTuple):
    """How a trace looks.

    time: see `TimeStyle`; durations: append how long each call took; limit: bytes of strings shown; column:
    where results are aligned; stacks: show where goroutines made their calls; colour: write colours.
    """

    time: TimeStyle = "none"
    durations: bool = False
    limit: int = DEFAULT_LIMIT
    column: int = 40
    stacks: bool = False
    colour: bool = False


_DEFAULTS = TextOptions()


class _Palette(NamedTuple):
    """What is written before and after coloured parts."""

    thread: str
    name: str
    error: str
    quiet: str
    end: str


_PLAIN = _Palette("", "", "", "", "")
_COLOURS = _Palette(thread="\x1b[36m", name="\x1b[1m", error="\x1b[31m", quiet="\x1b[2m", end="\x1b[0m")


class TextSink:
    """A `TraceSink` that writes text."""

    def __init__(self, writer: LineWriter, start: TraceStart, options: TextOptions = _DEFAULTS) -> None:
        self._writer = writer
        self._start = start
        self._options = options
        self._palette = _COLOURS if options.colour else _PLAIN
        self._first_tid: int | None = None
        self._several_threads = False
        self._last_ns: int | None = None
        self._places = OfStack(self._texts_of)
        self._batches = TextBatches(
            start.arch,
            options.limit,
            who=lambda who: self._who(who[0], who[1] or None),
            call=self._call_text,
            result=self._result_text,
            duration=self._duration_text,
            stack=self._stack_text,
        )

    def event(self, event: Event) -> None:
        """Write an event."""
        self._writer.write(f"{self._line(event)}\n".encode(errors="backslashreplace"))

    def calls(self, batch: CallBatch) -> None:
        """Write many calls."""
        if self._options.time != "none" or not self._several_threads:
            for event in batch.all_events():
                self.event(event)
            return
        lines = self._batches.lines(batch)
        if batch.others:
            lines = list(batch.between(lines, lambda event: f"{self._line(event)}\n"))
        for start in range(0, len(lines), LINES_AT_ONCE):
            text = "".join(lines[start : start + LINES_AT_ONCE])
            self._writer.write(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Write what was kept back."""
        self._writer.flush()

    def close(self) -> None:
        """Write all that is left."""
        self._writer.close()

    def _prefix(self, start_ns: int, tid: int | None, goid: int | None = None) -> str:
        text = "" if self._options.time == "none" else self._time(start_ns)
        if not self._several_threads and tid is not None:
            if self._first_tid is None:
                self._first_tid = tid
            self._several_threads = tid != self._first_tid
        if tid is None or not (self._several_threads or goid is not None):
            return text
        return text + self._who(tid, goid)

    def _who(self, tid: int, goid: int | None) -> str:
        palette = self._palette
        goroutine = "" if goid is None else f" g{goid}"
        return f"{palette.thread}[{tid}{goroutine}]{palette.end} "

    def _time(self, now_ns: int) -> str:
        match self._options.time:
            case "relative":
                before = self._last_ns
                self._last_ns = now_ns
                text = _seconds(max(now_ns - before, 0) if before is not None else 0)
            case "elapsed":
                text = _seconds(max(now_ns - self._start.monotonic_ns, 0))
            case _:
                date_ns = self._start.realtime_ns + now_ns - self._start.monotonic_ns
                text = _seconds(date_ns)
                if self._options.time == "clock":
                    clock = time.strftime("%H:%M:%S", time.localtime(date_ns // _NS))
                    text = f"{clock}.{date_ns % _NS // 1000:06d}"
        return f"{self._palette.quiet}{text}{self._palette.end} "

    def _call(self, event: SyscallEvent) -> str:
        options = self._options
        row = row_of(event.name)
        arguments = format_arguments(
            row, event.args, event.ins, event.outs, event.value, event.errno,
            limit=options.limit, arch=self._start.arch,
        )  # fmt: skip
        result = format_result(row, event.args, event.value, event.errno)
        text = self._call_text(event.name, arguments, " <unfinished ...>" if event.unfinished else ")")
        duration = "" if event.duration_ns is None else self._duration_text(event.duration_ns)
        return f"{text}{self._result_text(result, event.errno != 0)}{duration}{self._stack_text(event.stack)}"

    def _goroutine(self, event: GoEvent) -> str:
        who = "a goroutine" if event.goid is None else f"goroutine {event.goid}"
        match event.what:
            case "create":
                how = f"created: {event.function}()"
            case "start":
                how = "runs"
            case "block":
                how = f"blocks: {event.reason}{_channels_text(event)}"
            case "unblock":
                how = "unblocked"
            case _:
                how = "exits"
        where, stack = self._places(event.stack)
        return f"--- {who} {how}{where} ---{stack}"

    def _texts_of(self, stack: tuple[Frame, ...]) -> tuple[str, str]:
        """Return where a goroutine stands, and its stack, as an event's line has them."""
        place = next((frame for frame in stack if not frame.function.startswith(_WAITING)), None)
        return f" at {_place_text(place)}" if place is not None else "", self._stack_text(stack)

    def _call_text(self, name: str, arguments: str, end: str = ")") -> str:
        palette = self._palette
        padding = " " * (self._options.column - 2 - len(name) - len(arguments) - len(end))
        return f"{palette.name}{name}{palette.end}({arguments}{end}{padding}"

    def _result_text(self, result: str, is_error: bool) -> str:
        palette = self._palette
        return f" = {palette.error}{result}{palette.end}" if is_error and palette.error else f" = {result}"

    def _duration_text(self, duration_ns: int) -> str:
        if not self._options.durations:
            return ""
        return f" {self._palette.quiet}<{_seconds(duration_ns)}>{self._palette.end}"

    def _stack_text(self, stack: tuple[Frame, ...]) -> str:
        return "".join(f"\n > {_frame_text(frame)}" for frame in stack) if self._options.stacks else ""

    def _line(self, event: Event) -> str:
        match event:
            case SyscallEvent():
                return self._prefix(event.start_ns, event.tid, event.goid) + self._call(event)
            case SignalEvent():
                name = signal_name(event.signo)
                decode = find_buffer("siginfo", self._start.arch) if event.info else None
                info = to_text(decode(event.info, self._start.arch), self._options.limit) if decode else ""
                return f"{self._prefix(event.start_ns, event.tid)}--- {name}{' ' if info else ''}{info} ---"
            case StopEvent():
                prefix = self._prefix(event.start_ns, event.tid)
                return f"{prefix}--- stopped by {signal_name(event.signo)} ---"
            case ThreadEvent():
                prefix = self._prefix(event.start_ns, None)
                return f"{prefix}+++ thread {event.tid} {event.event} +++"
            case ExitEvent():
                how = f"exited with {event.status}"
                if event.status is None:
                    how = f"killed by {signal_name(event.signo)}{' (core dumped)' if event.core else ''}"
                return f"{self._prefix(event.start_ns, event.tid)}+++ {how} +++"
            case GoEvent():
                return self._prefix(event.start_ns, event.tid, event.by) + self._goroutine(event)
            case GcEvent():
                return f"{self._prefix(event.start_ns, event.tid, event.by)}--- gc: {event.phase} ---"
            case LossEvent():
                return f"{self._prefix(event.start_ns, None)}*** {event.lost} events lost ***"


def _seconds(duration_ns: int) -> str:
    microseconds = duration_ns // 1000
    return f"{microseconds // 1_000_000}.{microseconds % 1_000_000:06d}"


def _channels_text(event: GoEvent) -> str:
    if not event.channel:
        return ""
    return " " + ", ".join(f"{channel:#x}" for channel in event.channels or (event.channel,))


def _place_text(frame: Frame) -> str:
    text = f"{frame.function} {frame.file}:{frame.line}" if frame.file else f"{frame.function} {frame.pc:#x}"
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _frame_text(frame: Frame) -> str:
    place = f" {frame.file}:{frame.line}" if frame.file else ""
    text = f"{frame.function}(){place} [{frame.pc:#x}]"
    return text if text.isprintable() else text.encode("unicode_escape").decode()  # names are the program's
