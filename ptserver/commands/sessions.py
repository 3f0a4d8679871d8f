"""`ptserver sessions`: list what a server serves."""

import click

from ptserver.commands.watch_arguments import Connect, server_arguments


@click.command("sessions")
@server_arguments(required=True)
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")
def sessions_command(connect: Connect, *, as_json: bool) -> None:
    """List the sessions of a server: which programs run there, on which hosts, and since when.

    `ptserver attach`, `trace`, `goroutines` and `stack` look into one of them, with --server ADDR and its name.

    \b
    ptserver sessions --server localhost:11235
    ptserver attach --server localhost:11235 3f2a61-4
    """
    import msgspec

    from ptserver.commands.inspect_arguments import printing
    from ptserver.inspection.goroutine_list import format_duration, printable
    from ptserver.watching.watcher import age

    watcher = connect()
    watcher.close()
    encode = msgspec.json.Encoder().encode
    with printing() as write:
        for facts in watcher.sessions:
            if as_json:
                write(encode(facts) + b"\n")
                continue
            since = format_duration(round(age(facts) * 1e9))
            write(
                f"{facts.id:<12}  {since:>8}  {printable(facts.hostname):<16}  {printable(facts.program)}\n"
            )
        if watcher.welcome.omitted and not as_json:
            write(f"and {watcher.welcome.omitted} more\n")
