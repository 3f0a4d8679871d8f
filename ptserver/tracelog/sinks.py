"""Makes the sink that a user asked for, and imports no more than that one needs."""

from typing import Literal

from ptserver.tracelog.events import Event, TraceSink, TraceStart
from ptserver.tracelog.output import LineWriter, wants_colour
from ptserver.tracelog.text import TextOptions, TextSink

#: What a trace is written as. `summary` is a table, `summary-json` one object.
Form = Literal["text", "json", "summary", "summary-json"]


def open_sink(
    form: Form, path: str | None, start: TraceStart, options: TextOptions | None = None
) -> TraceSink:
    """Return a sink that writes *form* to the file *path*, to standard error for None, to standard output for `-`.

    options: for text, how it looks (its colour is decided here, by where it goes); for JSON its limit counts.

    Raises:
        TraceOutputError: the file cannot be made.
    """
    options = options or TextOptions()
    writer = LineWriter.open(path)
    if form == "text":
        return TextSink(writer, start, options._replace(colour=wants_colour(writer)))
    if form == "json":
        from ptserver.tracelog.jsonl import JsonLinesSink

        return JsonLinesSink(writer, start, limit=options.limit)
    from ptserver.tracelog.summary import SummarySink

    return SummarySink(writer, as_json=form == "summary-json")


class Tee:
    """A `TraceSink` that gives every event to several."""

    def __init__(self, *sinks: TraceSink) -> None:
        self._sinks = sinks

    def event(self, event: Event) -> None:
        """Give an event to all."""
        for sink in self._sinks:
            sink.event(event)

    def flush(self) -> None:
        """Flush all."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Close all."""
        for sink in self._sinks:
            sink.close()
