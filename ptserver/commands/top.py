"""`ptserver top`: what a spread program's hosts do, and what its memory costs."""

import sys
import time

import click

_CLEAR = "\x1b[H\x1b[2J"


@click.command("top")
@click.option(
    "-n",
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to say what happened.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="Leave after N times.")
@click.option("--system", is_flag=True, help="Show Go's own goroutines, too.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")
@click.argument("session", required=False)
def top_command(
    session: str | None, interval: float, count: int | None, *, system: bool, as_json: bool
) -> None:
    """Show where the goroutines of a spread program run, and how often memory is fetched, for what and for whom.

    SESSION is as for `ptserver ps`. Faults are the times that a thread had to wait for a page; they are counted while
    this command runs, by what lies at the address (a variable, the runtime's record or the stack of a goroutine, the
    heap), and by the goroutine that the thread ran at the end of the interval. Ctrl-C leaves.

    \b
    ptserver top
    ptserver top --json --count 1 -n 5 4711
    """
    from ptserver.commands.inspect_arguments import printing
    from ptserver.spread.listing import look
    from ptserver.spread.operator import Operator
    from ptserver.spread.show import encoder, faults_table, goroutines_table, hosts_table, title

    operator = Operator.connect(session)
    try:
        runtime = operator.runtime(operator.list(faults=True).path)
        encode = encoder()
        with printing() as write:
            while count is None or count > 0:
                time.sleep(interval)
                operator.forget_memory()
                listing = look(operator.session, operator.list(faults=True), runtime, system=system)
                if as_json:
                    for row in listing.rows():
                        write(encode(row))
                else:
                    write(_CLEAR if sys.stdout.isatty() else "")
                    write(title(listing) + "\n\n" + hosts_table(listing) + "\n")
                    write(faults_table(listing, interval) + "\n" + goroutines_table(listing, interval) + "\n")
                sys.stdout.flush()
                count = count - 1 if count is not None else None
    except KeyboardInterrupt:
        pass  # seen enough
    finally:
        operator.close()
