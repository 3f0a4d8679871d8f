"""`ptserver attach`: watch a running Go program live."""

import sys

import click

from ptserver.commands.watch_arguments import Connect, process_number, server_arguments
from ptserver.errors import PtServerError

#: What `--once` prints where no terminal says how wide it is, and how many rows of each page.
_PRINTED_WIDTH, _PRINTED_ROWS = 160, 20


class NoTerminalError(PtServerError):
    """The live view has nowhere to be shown."""

    exit_status = 64


@click.command("attach", no_args_is_help=True)
@click.option(
    "-n",
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to say what happened.",
)
@click.option(
    "--step",
    "steps",
    is_flag=True,
    help="Stop the program, and debug it at a prompt, as `ptserver step` does.",
)
@click.option("--once", is_flag=True, help="Print one interval as text, and leave.")
@click.option("--json", "as_json", is_flag=True, help="Print intervals as JSON lines; with --once, one.")
@click.option(
    "-e",
    "filters",
    metavar="EXPR",
    multiple=True,
    help="Which calls to count, as in `ptserver trace`; `-e none` leaves the program without a ring.",
)
@click.option(
    "-s",
    "--state",
    "states",
    multiple=True,
    metavar="STATE",
    help="Only goroutines in it: waiting, running...",
)
@click.option("-f", "--func", metavar="REGEXP", help="Only goroutines with such a function on their stacks.")
@click.option("--system", is_flag=True, help="Show the runtime's own goroutines, too.")
@click.option("--exact", is_flag=True, help="Measure the time blocked, which is estimated otherwise.")
@click.option("--force", is_flag=True, help="Try Go versions that are not supported, by their DWARF.")
@server_arguments()
@click.argument("target", metavar="PID|SESSION")
@click.pass_context
def attach_command(
    ctx: click.Context,
    target: str,
    connect: Connect | None,
    interval: float,
    filters: tuple[str, ...],
    states: tuple[str, ...],
    func: str | None,
    *,
    steps: bool,
    once: bool,
    as_json: bool,
    system: bool,
    exact: bool,
    force: bool,
) -> None:
    """Show what a running Go program does: its goroutines by state and by stack, what each uses, its calls.

    It is the process PID, or with --server what runs in SESSION of that server.

    On a terminal it is a live view; `h` tells the keys, `q` or Ctrl-C detaches, and the program goes on as it was.
    The program is stopped for a few milliseconds at a time, and for 2 per cent of the time at most.

    With --step it is stopped until `continue`, and is debugged at the prompt of `ptserver step`: breakpoints, steps
    by instruction, block and line, registers, memory. It goes on when that is left.

    \b
    ptserver attach 1234
    ptserver attach --once 1234
    ptserver attach --step 1234
    ptserver attach --json -n 5 1234 >> log
    ptserver attach --server localhost:11235 3f2a61-4
    """
    from ptserver.attach.snapshot import encoder
    from ptserver.attach.source import AttachSource
    from ptserver.attach.watch import Source, Watch, line_writer
    from ptserver.commands.inspect_arguments import compiled
    from ptserver.inspection.goroutine_list import Selection
    from ptserver.tracelog.filters import parse_filters

    if steps:
        if connect is not None or once or as_json or filters or states or func is not None or system or force:
            raise click.UsageError("--step goes with no other option, and with a PID of this machine")
        from ptserver.debugger.launch import attach_target
        from ptserver.debugger.prompt import run_prompt

        ctx.exit(run_prompt(attach_target(process_number(target)), None, attached=True))
    selection = Selection(states, compiled(func), system=system)
    live = not (once or as_json)
    if live and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise NoTerminalError("the live view needs a terminal: take --once or --json")
    names = parse_filters(filters)
    source: Source
    if connect is None:
        source = AttachSource(process_number(target), names, selection, force=force, exact=exact)
    else:
        from ptserver.attach.remote import RemoteSource

        watcher = connect()
        source = RemoteSource(watcher, watcher.find(target), selection, interval, exact=exact)
    watch = Watch(source, interval)
    try:
        if live:
            watch.show()
        elif as_json:
            sys.stdout.flush()
            watch.write(line_writer(1, encoder()), once=once)
        else:
            watch.write(_print, once=True)
    except BrokenPipeError:
        pass  # whoever reads has seen enough
    finally:
        watch.close()


def _print(snapshot: object) -> None:
    from rich.console import Console

    from ptserver.attach.snapshot import Snapshot
    from ptserver.attach.view import View

    assert isinstance(snapshot, Snapshot)
    view = View()
    view.show(snapshot)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PRINTED_WIDTH)
    console.print(view.print_all(console.width, _PRINTED_ROWS))
