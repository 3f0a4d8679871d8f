"""`ptserver trace`: log the system calls of a running process, or of a program."""

import os
from dataclasses import replace

import click

from ptserver.commands.trace_arguments import log_arguments
from ptserver.commands.watch_arguments import Connect, server_arguments
from ptserver.tracelog.options import TraceOptions


@click.command("trace", context_settings={"allow_interspersed_args": False}, no_args_is_help=True)
@log_arguments
@server_arguments()
@click.option(
    "--from",
    "recorded",
    metavar="FILE",
    help="Show the recording FILE, made with --format recording, as the other options say; to standard output.",
)
@click.argument("target", metavar="PID|PROGRAM|SESSION", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def trace_command(
    ctx: click.Context,
    log: TraceOptions,
    connect: Connect | None,
    recorded: str | None,
    target: str | None,
    arguments: tuple[str, ...],
) -> None:
    """Log the system calls of the running process PID, or of PROGRAM started with ARGUMENTS.

    A Go program is seen through a ring in its own memory: it is stopped for a few milliseconds at the beginning
    and the end, and a call costs it some tenths of a microsecond. Any other program is stopped at each call.
    Ctrl-C ends the log of a running process, which goes on as it was.

    With --server it is SESSION of that server whose calls are logged, as its host takes and answers them.

    \b
    ptserver trace 1234
    ptserver trace -e %network -k 1234
    ptserver trace -c ./main
    ptserver trace -e none --events=all 1234     what goroutines do
    ptserver trace --server localhost:11235 3f2a61-4
    ptserver trace --format recording -o calls 1234; ptserver trace --from calls -k
    """
    if recorded is not None:
        if target is not None or connect is not None:
            raise click.UsageError(
                "--from FILE shows what was recorded: it takes no program, process or session"
            )
        _show_recording(recorded, log)
        return
    if target is None:
        raise click.UsageError("name a process, a program, a session (--server) or a recording (--from)")
    if connect is not None:
        _trace_session(connect, target, log)
        return
    if not target.isdecimal():
        from ptserver.running.run import RunOptions, run

        ctx.exit(run(RunOptions(target, arguments, trace=log, engine="auto")))
    if arguments:
        raise click.UsageError(f"process {target} runs already: it takes no arguments")
    from ptserver.inspection.find_process import find_process
    from ptserver.tracelog.tracing import trace_process

    pid = find_process(int(target)).pid
    sink = log.open(_command_line(pid), pid)
    try:
        trace_process(
            pid,
            sink,
            log.names(),
            source=log.source,
            stacks=log.stacks,
            runtime=log.runtime(),
            note=log.note,
        )
    finally:
        sink.close()


def _show_recording(path: str, log: TraceOptions) -> None:
    from ptserver.tracelog.replay import replay

    replay(path, log if log.output is not None else replace(log, output="-"))


def _trace_session(connect: Connect, session: str, log: TraceOptions) -> None:
    from ptserver.watching.trace import trace_session

    runtime = log.runtime()
    watcher = connect()
    try:
        facts = watcher.find(session)
        sink = log.open([os.fsencode(facts.program)], here=False, waits_by_events=True)
        try:
            trace_session(
                watcher,
                facts.id,
                log.names(),
                sink,
                stacks=log.stacks,
                events=runtime.all_events,
                runtime=bool(runtime.calls),
            )
        finally:
            sink.close()
    finally:
        watcher.close()


def _command_line(pid: int) -> list[bytes]:
    """Return the arguments of process *pid*, as far as it shows them."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().rstrip(b"\0").split(b"\0")
