"""`ptserver trace`: log the system calls of a running process, or of a program."""

import click

from ptserver.commands.trace_arguments import log_arguments
from ptserver.trace_options import TraceOptions


@click.command("trace", context_settings={"allow_interspersed_args": False}, no_args_is_help=True)
@log_arguments
@click.argument("target", metavar="PID|PROGRAM")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def trace_command(ctx: click.Context, log: TraceOptions, target: str, arguments: tuple[str, ...]) -> None:
    """Log the system calls of the running process PID, or of PROGRAM started with ARGUMENTS.

    A Go program is seen through a ring in its own memory: it is stopped for a few milliseconds at the beginning
    and the end, and a call costs it some tenths of a microsecond. Any other program is stopped at each call.
    Ctrl-C ends the log of a running process, which goes on as it was.

    \b
    ptserver trace 1234
    ptserver trace -e %network -k 1234
    ptserver trace -c ./main
    """
    if not target.isdecimal():
        from ptserver.run import RunOptions, run

        ctx.exit(run(RunOptions(target, arguments, trace=log)))
    if arguments:
        raise click.UsageError(f"process {target} runs already: it takes no arguments")
    from ptserver.process_stop import find_process
    from ptserver.tracing import trace_process

    pid = find_process(int(target)).pid
    sink = log.open(_command_line(pid), pid)
    try:
        trace_process(pid, sink, log.names(), source=log.source, stacks=log.stacks, note=log.note)
    finally:
        sink.close()


def _command_line(pid: int) -> list[bytes]:
    """Return the arguments of process *pid*, as far as it shows them."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().rstrip(b"\0").split(b"\0")
