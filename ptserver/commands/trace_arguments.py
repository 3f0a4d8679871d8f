"""The options that all commands which trace have in common."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ptserver.tracelog.options import TraceOptions

if TYPE_CHECKING:
    from ptserver.tracelog.selection import Selection
    from ptserver.tracelog.sinks import Form

_SOURCES = ("auto", "ring", "stops")
_TIMES = ("none", "relative", "elapsed", "clock", "epoch")

#: What a summary counts by, as `tracelog.summary.Key` and `tracelog.goroutine_summary.GoroutineKey` say.
_KEYS = ("syscall", "goroutine", "site", "function")
_FORMATS = ("text", "json", "perfetto", "pprof", "otlp", "recording")

_NAMES = (
    "filters",
    "output",
    "events",
    "count",
    "by",
    "json",
    "form",
    "stacks",
    "strings",
    "time",
    "source",
    "quiet",
)
#: Which calls are shown; see `tracelog.selection`.
_SELECTING = ("goids", "function", "paths", "duration", "errors")
#: Those without which a log is the same as with their defaults, so that they prove no wish for one.
_HARMLESS = frozenset({"strings", "time", "source", "quiet"})

Command = Callable[..., Any]


class OptionalValueCommand(click.Command):
    """A command whose `--trace=FILE` means `--trace -o FILE`; click's own optional values swallow the next word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Split such a word where it stands before the first argument that is no option."""
        with_value = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag
            for name in param.opts
        }
        words = iter(list(args))
        split: list[str] = []
        for word in words:
            if word.startswith("--trace="):
                split += ["--trace", "-o", word.removeprefix("--trace=")]
                continue
            split.append(word)
            if word in with_value:
                split += [value for value in [next(words, None)] if value is not None]
            elif not word.startswith("-") or word == "--":
                split += words
        return super().parse_args(ctx, split)


def log_arguments(command: Command) -> Command:
    """Add the options of a log to *command*, which gets them as one `log`: `TraceOptions`."""

    @wraps(command)
    def with_log(*args: Any, **options: Any) -> Any:
        words = {name: options.pop(name) for name in (*_NAMES, *_SELECTING)}
        return command(*args, log=_options(words), **options)

    return _with_options(with_log, _LOG_OPTIONS)


def trace_arguments(command: Command) -> Command:
    """Add `--trace` and the options of its log to *command*, which gets them as `trace`: `TraceOptions`, or None."""

    @wraps(command)
    def with_trace(*args: Any, **options: Any) -> Any:
        wanted = options.pop("trace")
        words = {name: options.pop(name) for name in (*_NAMES, *_SELECTING)}
        if options.get("explain") is not None:
            return command(*args, trace=None, explain_in_json=words["json"], **options)
        if not wanted and any(value for name, value in words.items() if name not in _HARMLESS):
            raise click.UsageError("options of the log, such as -e, -o, -c and --errors, belong to --trace")
        return command(*args, trace=_options(words) if wanted else None, **options)

    trace = click.option("--trace", is_flag=True, help="Log the program's calls; --trace=FILE to a file.")
    return _with_options(with_trace, (trace, *_LOG_OPTIONS))


_LOG_OPTIONS = (
    click.option(
        "-e",
        "filters",
        metavar="EXPR",
        multiple=True,
        help="Which calls: names, %sets (%file, %desc, %network, ...), /REGEXP, !LIST for all others, runtime for "
        "what Go's runtime calls by itself. By default all that reach outside the program.",
    ),
    click.option(
        "--events",
        metavar="LIST",
        help="Also what becomes of goroutines: create, start, block, unblock, exit, gc, or all. With -c --by "
        "goroutine or site: block, to measure the time blocked; create, to name all that were created.",
    ),
    click.option(
        "--goid", "goids", metavar="N", multiple=True, type=int, help="Only this goroutine's calls."
    ),
    click.option(
        "--func",
        "function",
        metavar="REGEXP",
        help="Only calls with a matching function on the goroutine's stack.",
    ),
    click.option(
        "--path",
        "paths",
        metavar="PATTERN",
        multiple=True,
        help="Only calls on files so named (`/etc/*`), or on descriptors opened by such a name.",
    ),
    click.option("--duration", metavar="TEST", help="Only calls that took so long: '>1ms', '<=20us'."),
    click.option("--errors", is_flag=True, help="Only calls that failed."),
    click.option("-o", "output", metavar="FILE", help="Write the log to FILE, `-` for standard output."),
    click.option("-c", "count", is_flag=True, help="Print a summary at the end, instead of the log."),
    click.option(
        "--by",
        type=click.Choice(_KEYS),
        help="What -c counts by [syscall]. With goroutine, or site (where they were created): processor time, time "
        "blocked, calls and bytes; with function: calls by who made them.",
    ),
    click.option("--json", is_flag=True, help="Write JSON lines; with -c, one object."),
    click.option(
        "--format",
        "form",
        type=click.Choice(_FORMATS),
        help="Write the log as text, as JSON lines, for Perfetto's viewer, as a profile of the calls' time by stack "
        "for `go tool pprof`, as OpenTelemetry spans to a file or collector (-o URL), or as a recording, which costs "
        "least and of which `trace --from FILE` makes all others; the last four need -o.",
    ),
    click.option("-k", "stacks", is_flag=True, help="Show where in the program each call was made."),
    click.option("-s", "strings", metavar="BYTES", type=click.IntRange(0), help="Cut strings at BYTES [32]."),
    click.option("--time", type=click.Choice(_TIMES), default="none", help="Show when each call began."),
    click.option(
        "--source",
        type=click.Choice(_SOURCES),
        default="auto",
        help="How calls are seen: by a ring inside a Go program, which costs little, or by stopping it.",
    ),
    click.option("-q", "quiet", is_flag=True, help="No remarks about the trace itself."),
)


def _with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def _options(words: dict[str, Any]) -> TraceOptions:
    from ptserver.tracelog.text import TextOptions

    text = TextOptions(time=words["time"], durations=True, stacks=words["stacks"])
    if words["strings"] is not None:
        text = text._replace(limit=words["strings"])
    form = _form(words)
    if words["by"] and not words["count"]:
        raise click.UsageError("--by belongs to -c")
    selection, source = _selection(words), words["source"]
    if selection and form == "recording":
        raise click.UsageError(
            "a recording holds all calls that are traced (-e): choose among them when you read it, with --from"
        )
    if selection and selection.needs_goroutines:
        if source == "stops":
            raise click.UsageError("--goid and --func need goroutines, which --source stops does not know")
        source = "ring"
    if words["events"] and words["count"] and words["by"] not in ("goroutine", "site"):
        raise click.UsageError("a table has no events: with -c, --events belongs to --by goroutine or site")
    by_function = words["by"] == "function" or (selection is not None and selection.function is not None)
    return TraceOptions(
        filters=words["filters"],
        output=words["output"],
        form=form,
        by=words["by"] or "syscall",
        text=text,
        source=source,
        stacks=words["stacks"] or form == "pprof" or by_function,  # which are taken from stacks
        quiet=words["quiet"],
        selection=selection,
        events=_events(words["events"], words["source"]),
    )


def _events(text: str | None, source: str) -> frozenset[str]:
    """Return the kinds of events that `--events` asks for."""
    if text is None:
        return frozenset()
    from ptserver.tracelog.go_events import KINDS

    kinds = frozenset(text.replace("all", ",".join(KINDS)).split(","))
    if not kinds <= set(KINDS):
        unknown = ", ".join(sorted(kinds - set(KINDS)))
        raise click.UsageError(f"--events: no event {unknown!r}; there are {', '.join(KINDS)}, all")
    if source == "stops":
        raise click.UsageError("--events needs the ring, which --source stops does not use")
    return kinds


def _selection(words: dict[str, Any]) -> "Selection | None":
    """Return what the options select, None if they select nothing."""
    chosen = {name: words[name] for name in _SELECTING}
    if not any(chosen.values()):
        return None
    from ptserver.tracelog.selection import Selection

    return Selection.parse(**chosen)


def _form(words: dict[str, Any]) -> "Form":
    """Return the form that `--format`, `--json` and `-c` ask for together."""
    form: Form = words["form"] or ("json" if words["json"] else "text")
    if words["json"] and form != "json":
        raise click.UsageError(f"--json and --format {form} exclude each other")
    if form == "text" or form == "json":
        if words["count"]:
            return "summary-json" if form == "json" else "summary"
        return form
    if words["count"]:
        raise click.UsageError(f"-c makes a table, which --format {form} cannot hold")
    if words["output"] is None:
        what = "wants a file or a collector: name it with -o FILE or -o URL"
        what = what if form == "otlp" else "is binary: name a file for it with -o FILE"
        raise click.UsageError(f"--format {form} {what}")
    return form
