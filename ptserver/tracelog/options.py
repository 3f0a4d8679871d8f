"""What a user wants of a trace, and the sink that writes it so. Imports the trace log only when it is used."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptserver.tracelog.events import TraceSink, TraceStart
    from ptserver.tracelog.go_events import RuntimeWanted
    from ptserver.tracelog.goroutine_summary import GoroutineKey
    from ptserver.tracelog.selection import Selection
    from ptserver.tracelog.sinks import Form
    from ptserver.tracelog.summary import Key
    from ptserver.tracelog.text import TextOptions
    from ptserver.tracelog.tracing import Source


@dataclass(frozen=True)
class TraceOptions:
    """How to log calls.

    filters: expressions of ``-e``; output: a file, None for standard error, ``-`` for standard output; form: see
    `tracelog.sinks.Form`; by: what a summary counts by; text: how text looks; source: where calls are taken from;
    quiet: no remarks; selection: which of the calls are shown, None for all.
    events: which events of goroutines are wanted besides; for a summary: ``block``, that their waits are measured,
    ``create``, that all are named.
    """

    filters: tuple[str, ...] = ()
    output: str | None = None
    form: "Form" = "text"
    by: "Key | GoroutineKey" = "syscall"
    text: "TextOptions | None" = None
    source: "Source" = "auto"
    stacks: bool = False
    quiet: bool = False
    selection: "Selection | None" = None
    events: frozenset[str] = frozenset()

    def names(self) -> frozenset[str]:
        """Return the names of the calls that are wanted.

        Raises:
            FilterError: an expression names what does not exist.
        """
        from ptserver.tracelog.filters import parse_filters

        return parse_filters(self.filters)

    def runtime(self) -> "RuntimeWanted":
        """Return what is wanted of Go's runtime itself. A table of goroutines has their waits in place of events."""
        from ptserver.tracelog.filters import runtime_calls
        from ptserver.tracelog.go_events import RuntimeWanted

        calls = runtime_calls(self.filters)
        if self.is_summary:
            return RuntimeWanted(calls, self.events & {"create"}, waits="block" in self.events)
        return RuntimeWanted(calls, self.events)

    @property
    def is_summary(self) -> bool:
        """Whether a table is made at the end, in place of a log."""
        return self.form in ("summary", "summary-json")

    def open(
        self,
        argv: list[bytes],
        pid: int = 0,
        *,
        here: bool = True,
        waits_by_events: bool = False,
        start: "TraceStart | None" = None,
        keep: "Callable[[int], int] | None" = None,
    ) -> "TraceSink":
        """Return the sink that the log goes to; the first line names *argv*. here: whether it runs on this machine.

        waits_by_events: whether the source tells how long goroutines wait by events alone, where a table wants that.
        start: what the first line says, if that is not about a program for this machine that starts now; keep: moves
        the log's descriptor out of a program's way.

        Raises:
            TraceOutputError: the file cannot be made.
        """
        from ptserver.tracelog.events import TraceStart
        from ptserver.tracelog.sinks import open_sink

        start = start or TraceStart.now([os.fsdecode(word) for word in argv], pid)
        sink = open_sink(
            self.form,
            self.output,
            start,
            self.text,
            self.by,
            here=here,
            waits_by_events=waits_by_events and self.is_summary and "block" in self.events,
            keep=keep,
        )
        if self.selection is None:
            return sink
        from ptserver.tracelog.selection import SelectingSink

        return SelectingSink(sink, self.selection, pid if here else 0)

    def note(self, text: str) -> None:
        """Print a remark about the trace itself."""
        from ptserver.tracelog.output import complain_on_stderr

        if not self.quiet:
            complain_on_stderr(text)
