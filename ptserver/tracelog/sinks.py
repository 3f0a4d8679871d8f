"""Makes the sink that a user asked for, and imports no more than that one needs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from ptserver.tracelog.errors import TraceOutputError
from ptserver.tracelog.events import Event, TraceSink, TraceStart
from ptserver.tracelog.output import LineWriter, wants_colour
from ptserver.tracelog.text import TextOptions, TextSink

if TYPE_CHECKING:
    from ptserver.tracelog.batch import CallBatch
    from ptserver.tracelog.goroutine_summary import GoroutineKey
    from ptserver.tracelog.summary import Key

#: What a trace is written as. `summary` is a table, `summary-json` one object.
Form = Literal["text", "json", "summary", "summary-json", "perfetto", "pprof", "otlp", "recording"]

#: Forms that no terminal can show, nor be mixed with what the program prints.
BINARY_FORMS: frozenset[Form] = frozenset({"perfetto", "pprof", "recording"})


def open_sink(
    form: Form,
    path: str | None,
    start: TraceStart,
    options: TextOptions | None = None,
    by: "Key | GoroutineKey" = "syscall",
    *,
    here: bool = True,
    waits_by_events: bool = False,
    keep: Callable[[int], int] | None = None,
) -> TraceSink:
    """Return a sink that writes *form* to the file *path*, to standard error for None, to standard output for `-`.

    Spans (`otlp`) go to a collector if *path* is a URL.

    options: for text, how it looks (its colour is decided here, by where it goes); for JSON and Perfetto its limit
    counts. by: what a summary counts by; here: whether the program runs on this machine, so that it can be sampled;
    waits_by_events: whether a summary by goroutine measures time blocked by the events that it is given. keep: moves
    a file's descriptor out of a program's way.

    Raises:
        TraceOutputError: the file cannot be made, or the form is binary and goes to a terminal or standard error.
    """
    options = options or TextOptions()
    if form == "otlp":
        from ptserver.tracelog.otlp import OtlpSink

        return OtlpSink.open(path, start, limit=options.limit)
    writer = LineWriter.open(path, keep=keep)
    if form in BINARY_FORMS and (path is None or writer.is_terminal):
        where = "a terminal" if writer.is_terminal else "standard error"
        writer.close()
        raise TraceOutputError(
            f"a trace as {form} is binary and cannot go to {where}: name a file with -o FILE"
        )
    if form == "text":
        return TextSink(writer, start, options._replace(colour=wants_colour(writer)))
    if form == "json":
        from ptserver.tracelog.jsonl import JsonLinesSink

        return JsonLinesSink(writer, start, limit=options.limit)
    if form == "perfetto":
        from ptserver.tracelog.perfetto import PerfettoSink

        return PerfettoSink(writer, start, limit=options.limit)
    if form == "pprof":
        from ptserver.tracelog.pprof import PprofSink

        return PprofSink(writer, start)
    if form == "recording":
        from ptserver.tracelog.recording import RecordingSink

        return RecordingSink(writer, start)
    as_json = form == "summary-json"
    if by == "goroutine" or by == "site":
        from ptserver.tracelog.goroutine_summary import GoroutineSummarySink

        return GoroutineSummarySink(
            writer, by=by, as_json=as_json, pid=start.pid, here=here, waits_by_events=waits_by_events
        )
    from ptserver.tracelog.summary import SummarySink

    return SummarySink(writer, by=by, as_json=as_json)


class Tee:
    """A `TraceSink` that gives every event to several."""

    def __init__(self, *sinks: TraceSink) -> None:
        self._sinks = sinks

    def event(self, event: Event) -> None:
        """Give an event to all."""
        for sink in self._sinks:
            sink.event(event)

    def calls(self, batch: "CallBatch") -> None:
        """Give many calls to all."""
        for sink in self._sinks:
            sink.calls(batch)

    def flush(self) -> None:
        """Flush all."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Close all."""
        for sink in self._sinks:
            sink.close()
