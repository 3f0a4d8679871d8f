"""`ptserver goroutines`: list the goroutines of a process or a core dump."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ptserver.commands.inspect_arguments import compiled, inspect_arguments, printing, session_rows
from ptserver.commands.watch_arguments import Connect, server_arguments

if TYPE_CHECKING:
    from ptserver.inspection.goroutine_list import GoroutineRow


@click.command("goroutines", no_args_is_help=True)
@click.option("-k", "--stacks", is_flag=True, help="Show their stacks, as Go's own traces do.")
@click.option("-r", "--runtime", is_flag=True, help="Show the runtime's calls in stacks, too.")
@click.option("-g", "--group", is_flag=True, help="Show each stack once, with how many have it.")
@click.option("--by-state", is_flag=True, help="Show only how many there are in each state.")
@click.option(
    "-s", "--state", "states", multiple=True, metavar="STATE", help="Only those: waiting, running..."
)
@click.option("-f", "--func", metavar="REGEXP", help="Only those with such a function on their stacks.")
@click.option("--system", is_flag=True, help="Show the runtime's own goroutines, too.")
@click.option("-l", "--labels", is_flag=True, help="Read profiler labels and channels, too; takes longer.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")
@server_arguments()
@inspect_arguments
def goroutines_command(
    target: str,
    connect: Connect | None,
    exe: str | None,
    func: str | None,
    states: tuple[str, ...],
    *,
    force: bool,
    no_stop: bool,
    stacks: bool,
    runtime: bool,
    group: bool,
    by_state: bool,
    system: bool,
    labels: bool,
    as_json: bool,
) -> None:
    """List the goroutines of the process PID, of the core dump CORE, or with --server of a SESSION.

    The process is stopped for some milliseconds, and changed in no way. STATE is what the list shows: waiting,
    running, runnable, syscall..., or a reason to wait, such as "chan receive".

    \b
    ptserver goroutines 1234
    ptserver goroutines -g 1234
    ptserver goroutines -k --state waiting --func 'http.*Serve' 1234
    ptserver goroutines --json core.1234
    ptserver goroutines --server localhost:11235 3f2a61-4
    """
    if group and by_state:
        raise click.UsageError("--group and --by-state exclude each other")
    pattern = compiled(func)

    from ptserver.inspection.goroutine_list import (
        Groups,
        Selection,
        SummaryRow,
        encoder,
        format_group,
        format_line,
        format_summary,
        format_trace,
    )
    from ptserver.inspection.goroutine_rows import RowMaker
    from ptserver.inspection.inspector import inspect_target
    from ptserver.messages import Watch

    encode = encoder()
    selection = Selection(states, pattern, system=system)
    groups = Groups(by_state=by_state) if group or by_state else None

    def local_rows() -> "Iterator[GoroutineRow | SummaryRow]":
        with inspect_target(target, exe, force=force, stop=not no_stop) as inspected:
            maker = RowMaker(inspected, selection, stacks=stacks or group)
            count = 0
            for row in maker.iter_rows(inspected.iter_sightings(details=labels)):
                count += 1
                yield row
            stopped_ns = int(inspected.longest_stop_s * 1e9)
            yield SummaryRow(count, maker.system_hidden, maker.filtered, inspected.skipped, stopped_ns)

    def remote_rows(connect: Connect) -> "Iterator[GoroutineRow | SummaryRow]":
        watch = Watch(
            1,
            "goroutines",
            stacks=stacks or group,
            labels=labels,
            system=system,
            states=states,
            function=func or "",
        )
        return session_rows(connect, target, watch)

    with printing() as write:
        rows = local_rows() if connect is None else remote_rows(connect)
        summary = None
        for row in rows:
            if isinstance(row, SummaryRow):
                summary = row
            elif groups is not None:
                groups.add(row)
            elif as_json:
                write(encode(row))
            else:
                write(format_trace(row, runtime=runtime) if stacks else format_line(row))
        assert summary is not None
        if groups is not None:
            if group and not as_json:
                write(f"goroutine profile: total {summary.goroutines}\n")
            for grouped in groups.rows():
                write(encode(grouped) if as_json else format_group(grouped))
        if as_json:
            write(encode(summary))
        elif not stacks and not group:
            write(format_summary(summary, all_wanted=not states and func is None))
