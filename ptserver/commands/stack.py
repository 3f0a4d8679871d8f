"""`ptserver stack`: show the stack of one goroutine, or of all."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import click

from ptserver.commands.inspect_arguments import inspect_arguments, printing, session_rows
from ptserver.commands.watch_arguments import Connect, server_arguments

if TYPE_CHECKING:
    from ptserver.inspection.goroutine_list import GoroutineRow, SummaryRow


@click.command("stack", no_args_is_help=True)
@click.option("-r", "--runtime", is_flag=True, help="Show the runtime's calls, too.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")
@server_arguments()
@inspect_arguments
@click.argument("goid", type=click.IntRange(min=1), required=False)
def stack_command(
    target: str,
    connect: Connect | None,
    exe: str | None,
    goid: int | None,
    *,
    force: bool,
    no_stop: bool,
    runtime: bool,
    as_json: bool,
) -> None:
    """Show the stack of goroutine GOID of the process PID or the core dump CORE; without GOID, of all.

    With --server it is SESSION of that server.

    Of one goroutine, more is shown: how long it has waited, its thread, its profiler labels, and the channels
    that it waits for.

    \b
    ptserver stack 1234
    ptserver stack 1234 18
    ptserver stack --runtime core.1234 18
    """
    from ptserver.inspection.find_process import InspectError
    from ptserver.inspection.goroutine_list import (
        GoroutineRow,
        Selection,
        encoder,
        format_details,
        format_trace,
    )
    from ptserver.inspection.goroutine_rows import RowMaker
    from ptserver.inspection.inspector import inspect_target
    from ptserver.messages import Watch

    encode = encoder()

    def local_rows() -> "Iterator[GoroutineRow | SummaryRow]":
        with inspect_target(target, exe, force=force, stop=not no_stop) as inspected:
            maker = RowMaker(inspected, Selection(system=goid is not None), stacks=True)
            if goid is None:
                yield from maker.iter_rows(inspected.iter_sightings())
                return
            sighting = inspected.find(goid)
            if sighting is None:
                raise InspectError(f"{inspected.title} has no goroutine {goid}")
            yield from maker.iter_rows(iter([sighting]))

    what: Literal["goroutines", "stack"] = "goroutines" if goid is None else "stack"
    watch = Watch(1, what, goid=goid or 0, stacks=True)
    with printing() as write:
        for row in local_rows() if connect is None else session_rows(connect, target, watch):
            if not isinstance(row, GoroutineRow):
                continue
            if as_json:
                write(encode(row))
                continue
            write(format_trace(row, runtime=runtime))
            if goid is not None:
                write(format_details(row))
