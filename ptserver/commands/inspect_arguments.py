"""What the commands that look into a process or a core have in common: its arguments, and how they print."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ptserver.commands.watch_arguments import Connect

if TYPE_CHECKING:
    from ptserver.inspection.goroutine_list import GoroutineRow, SummaryRow
    from ptserver.messages import Watch

_BUFFER_BYTES = 1 << 16

Command = Callable[..., Any]


def inspect_arguments(command: Command) -> Command:
    """Add the target and the options of `inspection.inspect_target` to *command*."""
    for decorate in (
        click.argument("target", metavar="PID|CORE|SESSION"),
        click.option(
            "--exe", metavar="FILE", help="The program that a core is of, if it is not where it was."
        ),
        click.option("--force", is_flag=True, help="Try Go versions that are not supported, by their DWARF."),
        click.option(
            "--no-stop",
            is_flag=True,
            help="Read a process as it runs: for one that may not be stopped, or that a debugger holds.",
        ),
    ):
        command = decorate(command)
    return command


def compiled(func: str | None) -> re.Pattern[str] | None:
    """Return the pattern of `--func`, None without one.

    Raises:
        click.UsageError: it is no regular expression.
    """
    try:
        return re.compile(func) if func is not None else None
    except re.error as error:
        raise click.UsageError(f"--func {func!r} is no regular expression: {error}") from error


def session_rows(connect: Connect, session: str, watch: "Watch") -> "Iterator[GoroutineRow | SummaryRow]":
    """Yield what the host of a session says of its goroutines.

    Raises:
        NoSessionError: there is no such session, or the host cannot tell.
    """
    import msgspec

    from ptserver.inspection.goroutine_list import GoroutineRow, SummaryRow, read_rows
    from ptserver.watching.watcher import NoSessionError

    watcher = connect()
    try:
        watch = msgspec.structs.replace(watch, session=watcher.find(session).id)
        for row in read_rows(watcher.rows(watch)):
            if isinstance(row, GoroutineRow | SummaryRow):
                yield row
    except msgspec.DecodeError as error:
        raise NoSessionError("the host is another version of ptserver, whose lists are not known") from error
    finally:
        watcher.close()


@contextmanager
def printing() -> Iterator[Callable[[str | bytes], object]]:
    """Give a function that writes to standard output; a reader that has seen enough ends the command silently."""
    sys.stdout.flush()
    try:
        # A buffer of its own: Python's has none if the user says so, and a list may have many thousand lines.
        with open(sys.stdout.fileno(), "wb", buffering=_BUFFER_BYTES, closefd=False) as out:
            yield lambda text: out.write(
                text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
            )
    except BrokenPipeError:
        # Python flushes once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
