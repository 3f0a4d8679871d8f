"""Writes where a program's time in calls went, as a profile that `go tool pprof` reads.

    file       = gzip(Profile)
    Profile    = *sample_type *sample *mapping *location *function *string_table time_nanos duration_nanos *comment
    sample     = locations, innermost first; values: calls (`calls/count`), what they took (`time/nanoseconds`)

The innermost location of a sample is the call itself, as a function of its name in the mapping `[kernel]`; then come
the frames of the goroutine's stack, if they are known. The time is what passed while a thread was in the
call, waiting included.

Calls are added up by name and stack, so memory does not grow with the length of the trace, and the file is written
at the end. What is beyond a number of different stacks is counted by name, and a comment says so.

Thread rules: as `TraceSink`.

Source: proto/profile.proto in github.com/google/pprof
"""

import gzip
from collections.abc import Iterator

from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Event, Frame, LossEvent, SyscallEvent, TraceStart
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.protobuf import bytes_field, number_field, packed_field, text_field

#: How many different stacks are told apart.
_MAX_STACKS = 1 << 16

_OTHER_STACKS = (Frame("(other stacks)"),)

# Ids of mappings.
_PROGRAM = 1
_KERNEL = 2

_Key = tuple[str, tuple[Frame, ...]]


class PprofSink:
    """A `TraceSink` that writes a profile when it is closed."""

    def __init__(self, writer: LineWriter, start: TraceStart) -> None:
        self._writer = writer
        self._start = start
        self._end_ns = start.monotonic_ns
        self._samples: dict[_Key, list[int]] = {}
        self._unmeasured = 0
        self._lost = 0
        self._overflown = 0

    def event(self, event: Event) -> None:
        """Count an event, if it is a call."""
        if type(event) is SyscallEvent:
            self._add(event)
        elif isinstance(event, LossEvent):
            self._lost += event.lost

    def calls(self, batch: CallBatch) -> None:
        """Count many calls."""
        for event in batch.events():
            self._add(event)

    def flush(self) -> None:
        """Nothing is written before the end."""

    def close(self) -> None:
        """Write the profile."""
        profile = _Profile(self._start.program[0] if self._start.program else "")
        for (name, stack), (calls, total_ns) in self._samples.items():
            profile.add(name, stack, calls, total_ns)
        duration_ns = self._end_ns - self._start.monotonic_ns
        content = profile.encode(self._start.realtime_ns, duration_ns, list(self._comments()))
        self._writer.write(gzip.compress(content, mtime=0))
        self._writer.close()

    def _add(self, event: SyscallEvent) -> None:
        duration_ns = event.duration_ns
        if duration_ns is None:
            self._unmeasured += 1
            duration_ns = 0
        key = (event.name, event.stack)
        sample = self._samples.get(key)
        if sample is None:
            if len(self._samples) >= _MAX_STACKS:
                self._overflown += 1
                key = (event.name, _OTHER_STACKS)
            sample = self._samples.setdefault(key, [0, 0])
        sample[0] += 1
        sample[1] += duration_ns
        self._end_ns = max(self._end_ns, event.start_ns + duration_ns)

    def _comments(self) -> Iterator[str]:
        if self._lost:
            yield f"{self._lost} events were lost"
        if self._overflown:
            yield f"{self._overflown} calls are counted without their stacks: there were too many different ones"
        if self._unmeasured:
            yield f"{self._unmeasured} calls are counted without a time: they did not end, or nobody measured them"


class _Profile:
    """A profile being made: tables of what samples refer to."""

    def __init__(self, program: str) -> None:
        self._strings: dict[str, int] = {"": 0}  # the format wants the empty one first
        self._functions: dict[tuple[str, str], int] = {}
        self._locations: dict[tuple[int, int, int, int], int] = {}
        self._messages: list[bytes] = []
        types = (("calls", "count"), ("time", "nanoseconds"))
        self._messages += (bytes_field(1, self._text(1, kind) + self._text(2, unit)) for kind, unit in types)
        # has_functions, has_filenames, has_line_numbers, has_inline_frames: there is nothing left to look up.
        known = b"".join(number_field(field, 1) for field in (7, 8, 9, 10))
        for mapping, name in ((_PROGRAM, program), (_KERNEL, "[kernel]")):
            self._messages.append(bytes_field(3, number_field(1, mapping) + self._text(5, name) + known))

    def add(self, name: str, stack: tuple[Frame, ...], calls: int, total_ns: int) -> None:
        """Add a sample."""
        locations = [self._location(_KERNEL, Frame(name))]
        locations += (self._location(_PROGRAM, frame) for frame in stack)
        self._messages.append(bytes_field(2, packed_field(1, locations) + packed_field(2, (calls, total_ns))))

    def encode(self, realtime_ns: int, duration_ns: int, comments: list[str]) -> bytes:
        """Return the profile. realtime_ns: when it began."""
        times = number_field(9, realtime_ns) + number_field(10, duration_ns)
        notes = b"".join(self._text(13, comment) for comment in comments)
        shown_first = self._text(14, "time")
        strings = b"".join(text_field(6, text) for text in self._strings)
        return b"".join((*self._messages, times, notes, shown_first, strings))

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _text(self, field: int, text: str) -> bytes:
        return number_field(field, self._string(text))

    def _function(self, name: str, file: str) -> int:
        found = self._functions.get((name, file))
        if found is None:
            found = self._functions[name, file] = len(self._functions) + 1
            content = number_field(1, found) + self._text(2, name) + self._text(3, name) + self._text(4, file)
            self._messages.append(bytes_field(5, content))
        return found

    def _location(self, mapping: int, frame: Frame) -> int:
        function = self._function(frame.function or hex(frame.pc), frame.file)
        key = (mapping, frame.pc, function, frame.line)
        found = self._locations.get(key)
        if found is None:
            found = self._locations[key] = len(self._locations) + 1
            line = number_field(1, function) + number_field(2, frame.line)
            content = number_field(1, found) + number_field(2, mapping) + number_field(3, frame.pc)
            self._messages.append(bytes_field(4, content + bytes_field(4, line)))
        return found
