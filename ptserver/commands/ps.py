"""`ptserver ps`: which goroutine of a spread program runs where."""

import click


@click.command("ps")
@click.option("--system", is_flag=True, help="Show Go's own goroutines, too.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")
@click.argument("session", required=False)
def ps_command(session: str | None, *, system: bool, as_json: bool) -> None:
    """Show the hosts of a program that `ptserver run --spread` runs, and which goroutine runs where.

    SESSION is the process id of that `ptserver run`, and may be left out if you have one such program on this
    machine. A goroutine that no thread runs at the moment is nowhere: its memory is where it was touched last.

    The program is not stopped, so a goroutine that changes just then may be missing.

    \b
    ptserver ps
    ptserver ps 4711 --json
    """
    from ptserver.commands.inspect_arguments import printing
    from ptserver.spread.listing import look
    from ptserver.spread.operator import Operator
    from ptserver.spread.show import encoder, goroutines_table, hosts_table, title

    operator = Operator.connect(session)
    try:
        listed = operator.list()
        listing = look(operator.session, listed, operator.runtime(listed.path), system=system)
    finally:
        operator.close()
    with printing() as write:
        if as_json:
            encode = encoder()
            for row in listing.rows():
                write(encode(row))
            return
        write(title(listing) + "\n\n")
        write(hosts_table(listing) + "\n")
        write(goroutines_table(listing))
